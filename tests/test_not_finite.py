"""Numbers that are not finite, and embeddings that collapsed: a training stops, names the rows and keeps nothing."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import TrainerCallback

from steps import embedding, schema
from tests.killing import Training


@pytest.mark.fault(26)
def test_a_row_that_is_not_finite_stops_training_before_its_step_and_is_named(small, monkeypatch):
    found = Training(monkeypatch, "sts", small("sts", epochs=1))
    with pa.ipc.open_stream("data/train.arrow") as source:
        table = source.read_all()
    labels = table["label"].to_pylist()
    labels[17] = float("nan")
    table = table.set_column(table.schema.get_field_index("label"), "label", pa.array(labels, table["label"].type))
    with pa.ipc.new_stream("data/poisoned", table.schema) as out:
        out.write_table(table)
    Path("data/poisoned").replace("data/train.arrow")
    with pytest.raises(schema.InputError, match="the loss is nan at step") as refused:
        found.run()
    step = int(str(refused.value).partition("at step ")[2].partition(",")[0])
    rows = str(refused.value).partition("in rows ")[2].partition(" of train.arrow")[0].split(", ")
    assert "17" in rows and len(rows) == 8
    assert not Path("model").exists()
    assert [path.name for path in found.checkpoints()] == [f"checkpoint-{s:08}" for s in range(max(1, step - 2), step)]


class Overflow(TrainerCallback):
    """Makes the gradient of the last of 3 steps infinite; its loss is finite, and no step comes behind it."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            next(model.parameters()).register_hook(lambda gradient: gradient + np.inf)


@pytest.mark.fault(26)
@pytest.mark.parametrize("recipe", ["sts", "emotion"])
def test_a_gradient_that_is_not_finite_stops_training_by_itself(small, monkeypatch, recipe):
    found = Training(monkeypatch, recipe, small(recipe, epochs=1))
    with pytest.raises(schema.InputError, match=r"^the gradient's norm is inf at step 3, in rows \d+, "):
        found.fault(Overflow(), "model")
    assert not Path("model").exists()


@pytest.mark.fault(26)
def test_a_rate_that_makes_weights_infinite_is_found_out_too(small, monkeypatch):
    """An infinite rate makes infinite weights, and the step behind has no finite loss."""
    found = Training(monkeypatch, "emotion", small("emotion", learning_rate=1e38, epochs=1))
    with pytest.raises(schema.InputError, match=r"^the (loss|gradient's norm) is (nan|inf) at step \d, in rows \d+, "):
        found.run()
    assert not Path("model").exists()


@pytest.mark.fault(26)
@pytest.mark.parametrize("vectors, found", [
    ([[1.0, 2.0], [1.0, 2.0]], True), ([[1.0, 2.0], [1.0, 2.1]], False), ([[1.0, 2.0], [1.0, 2.0 + 1e-9]], True),
    ([[np.nan, 2.0], [1.0, 2.0]], True)])
def test_embeddings_collapsed_where_every_text_has_the_same(vectors, found):
    assert embedding.collapsed([np.array(vectors), np.array(vectors)], embedding.COLLAPSED) is found


@pytest.mark.fault(26)
def test_a_model_whose_embeddings_collapsed_is_not_kept(small, monkeypatch, tiny_model):
    """Every weight is 0, so every text has the same vector."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_model, "zero")
    weights = load_file("zero/model.safetensors")
    save_file({name: np.zeros_like(value) for name, value in weights.items()}, "zero/model.safetensors",
              {"format": "pt"})
    recipe = small("sts").model_copy(update={"base_model": "zero"})
    with pytest.raises(schema.InputError, match="the embeddings have collapsed"):
        Training(monkeypatch, "sts", recipe).run()
    assert not Path("model").exists()


class Collapse(TrainerCallback):
    """From step 2 on every text has one vector, whatever dropout leaves out; loss and gradient are numbers."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            for name, weights in model.named_parameters():
                weights.data.fill_(float(name.endswith("LayerNorm.bias")))


@pytest.mark.fault(26)
@pytest.mark.parametrize("recipe", ["sts", "nli", "tsdae", "mlm", "multilingual"])
def test_embeddings_that_collapse_stop_training_at_the_next_line_of_its_log(small, monkeypatch, recipe):
    found = Training(monkeypatch, recipe, small(recipe, epochs=1))
    with pytest.raises(schema.InputError, match=r"^the embeddings have collapsed: all texts have one vector at step 2, "
                                                r"in rows \d+, "):
        found.fault(Collapse(), "model")
    assert not Path("model").exists()


@pytest.mark.fault(26)
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_embeddings_that_a_high_rate_collapses_are_noticed(small, monkeypatch, rate):
    """The vectors of different texts are never quite the same, but next to what they were."""
    found = Training(monkeypatch, "sts", small("sts", learning_rate=rate, epochs=6, patience=99))
    with pytest.raises(schema.InputError, match="the embeddings have collapsed"):
        found.run()
    assert not Path("model").exists()


def test_looking_for_a_collapse_leaves_the_bits_of_a_training_as_they_are(small, monkeypatch):
    found = Training(monkeypatch, "sts", small("sts", epochs=1))
    looked = found.run()
    monkeypatch.setattr(embedding.Trainer, "one_for_all", lambda self, features: False)
    assert found.run("again") == looked
