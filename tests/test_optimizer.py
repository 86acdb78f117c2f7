"""What the optimizer of every kind of training does is what params.yaml says."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from steps import params, training
from tests.project import ROOT


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(4, 4), nn.LayerNorm(4)


@pytest.fixture
def optimizer(tmp_path):
    """optimizer(decay) -> what the shipped recipe cola makes of a layer and its norm, with names of its parameters."""
    def make(decay: float):
        recipe = params.load(ROOT / "params.yaml").recipe("cola")
        settings = recipe.train.model_copy(update={"weight_decay": decay, "precision": "fp32"})
        model = Encoder()
        arguments = training.arguments(settings, 42, 64, Path(tmp_path))
        trainer = Trainer(model, TrainingArguments(**arguments), eval_dataset=[{}])
        names = {id(p): name for name, p in model.named_parameters()}
        return trainer.create_optimizer(), names, trainer.args
    return make


def test_weight_decay_spares_biases_and_layer_norms(optimizer):
    made, names, _ = optimizer(0.1)
    decay = {names[id(p)]: group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert decay == {"dense.weight": 0.1, "dense.bias": 0.0, "LayerNorm.weight": 0.0, "LayerNorm.bias": 0.0}


def test_the_optimizer_is_adamw_with_the_published_epsilon_and_clipping(optimizer):
    made, _, arguments = optimizer(0.0)
    assert isinstance(made, torch.optim.AdamW)
    assert {group["eps"] for group in made.param_groups} == {1e-8}
    assert {group["weight_decay"] for group in made.param_groups} == {0.0}
    assert arguments.max_grad_norm == 1.0
