"""Tokenized texts with labels and a base model -> a trained classifier, and logits from one.

Fine-tuning as in Devlin et al. 2019, https://arxiv.org/abs/1810.04805, by the library's Trainer.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)
from transformers import Trainer as LibraryTrainer
from transformers.utils import logging as transformers_logging

from steps import batching, losses, ranks, schema, training, vocabulary
from steps.resuming import Resumable
from steps.schema import InputError


def load(path: Path, settings: schema.Recipe, new_head: bool = False, tokenizer: Path | None = None) -> PreTrainedModel:
    """The classifier in `path`, in fp32, with its own names of the labels, or with a head for the recipe's.

    That is a new one, or the one in `path` where it has as many classes. Raises InputError where `path` has no head
    for these labels and none is to be made.
    """
    transformers_logging.disable_progress_bar()
    if not list(path.glob("*.safetensors")):
        raise InputError(f"{path} has no model.safetensors; other formats of weights are not loaded")
    names = settings.prepare.labels if new_head else vocabulary.own_labels(path) or settings.prepare.labels
    model, info = AutoModelForSequenceClassification.from_pretrained(
        path, local_files_only=True, trust_remote_code=False, problem_type="single_label_classification",
        num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
        ignore_mismatched_sizes=True, output_loading_info=True)
    if not new_head and (lacking := [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
        raise InputError(f"{path} is no classifier of {', '.join(names)}: it lacks "
                         f"{', '.join(sorted(lacking))}; choose a model with a head for these labels")
    model.tokenizer = AutoTokenizer.from_pretrained(tokenizer or path, local_files_only=True)
    model.max_seq_length = settings.prepare.max_length
    return model.float().to("cuda" if torch.cuda.is_available() else "cpu")


def other_labels(model: PreTrainedModel, settings: schema.Recipe) -> str:
    """Why its answers, which are the places of labels, are not those of the recipe's labels; nothing where they are."""
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if names == settings.prepare.labels:
        return ""
    return f"its classes are {', '.join(names)}, and the recipe's labels are {', '.join(settings.prepare.labels)}"


def classify(model: PreTrainedModel, texts: list[list[int]], batch_size: int) -> np.ndarray:
    """Token ids of n texts -> [n, classes] float32 logits, computed longest first so that padding is small."""
    logits = np.empty((len(texts), model.config.num_labels), np.float32)
    model.eval()
    with torch.inference_mode():
        for chosen, features in batching.longest_first(texts, batch_size, model.tokenizer.pad_token_id, model.device):
            logits[chosen] = model(**features).logits.float().cpu().numpy()
    return logits


def outputs(model: PreTrainedModel, columns: Sequence[list[str]], batch_size: int) -> np.ndarray:
    """[n, classes] logits of the one column of texts, cut into tokens by the model's own tokenizer."""
    texts, = columns
    return classify(model, model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"],
                    batch_size)


def baseline(train: Path, labels: np.ndarray) -> np.ndarray:
    """[n] the class that most rows of train have: a base model has no classes of its own."""
    seen = batching.labels(batching.load(train)).astype(int)
    return np.full(len(labels), np.bincount(seen).argmax())


class Trainer(Resumable, LibraryTrainer):
    """The library's trainer, fed with batches of similar length, with weights for the classes."""

    def __init__(self, *args, length_grouping: int, weights: torch.Tensor | None, task: ModuleType, metric: str,
                 **kwargs):
        self.length_grouping, self.weights, self.task, self.metric = length_grouping, weights, task, metric
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False      # compute_loss gives a mean, which accumulation divides

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        self.batches = batching.LengthGroupedBatches(batching.lengths(self.train_dataset), self.args.train_batch_size,
                                                     self.length_grouping, self.args.seed)
        loader = torch.utils.data.DataLoader(self.train_dataset, batch_sampler=self.batches,
                                             collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory)
        self.accelerator.even_batches = False
        return self.prepared(loader)

    def counts(self, batch) -> float:
        """With weights, the mean is over those of the rows."""
        if self.weights is None:
            return super().counts(batch)
        return float(self.weights.to(batch["labels"].device)[batch["labels"]].sum())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, rows = inputs.pop("labels"), inputs.pop("rows", None)
        outputs = model(**inputs)
        weights = None if self.weights is None else self.weights.to(outputs.logits.device)
        loss = torch.nn.functional.cross_entropy(outputs.logits.float(), labels, weight=weights)
        if rows is not None:        # of several ranks, each with some of them
            count = ranks.rows_of(ranks.rank(), rows)
            if weights is not None:
                count = float(weights[labels].sum()) if count else 0.0
                rows, = ranks.total(count)
            loss = loss * ranks.share(count, rows)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Every score on dev and its loss, each text computed once and padded little."""
        labels = batching.labels(self.eval_dataset).astype(int)
        logits = classify(self.model, self.eval_dataset["text" + batching.IDS][:],
                          self.args.per_device_eval_batch_size)
        scores = self.task.scores(logits, labels)
        if not math.isfinite(scores[self.metric]):
            raise InputError(f"dev {self.metric} is {scores[self.metric]}: the logits are not finite; "
                             "lower train.learning_rate or mend the data")
        loss = torch.nn.functional.cross_entropy(torch.as_tensor(logits), torch.as_tensor(labels),
                                                 weight=self.weights)
        metrics = ranks.agreed({f"{metric_key_prefix}_{k}": v for k, v in {**scores, "loss": float(loss)}.items()})
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Collator(batching.Collator):
    """Rows of token ids -> input_ids, attention_mask and labels."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        return {name.removeprefix("text_").replace("label", "labels"): tensor
                for name, tensor in super().__call__(rows).items()}


def build_trainer(recipe: ModuleType, settings: schema.Recipe, seed: int, data: Path, base_model: Path,
                  scratch: Path, log: training.Log, parts: int = 1) -> tuple[Trainer, training.History]:
    """The library's trainer on data/train.arrow, ready to train."""
    set_seed(seed)      # before the base model is loaded: the head starts at random
    chosen = settings.train
    train_set, dev_set = batching.load(data / "train.arrow"), batching.load(data / "dev.arrow")
    model = load(base_model, settings, new_head=True)
    training.set_dropout(chosen.dropout, model)
    history = training.History(chosen.metric, recipe.METRIC, chosen.evaluations, chosen.patience, log)
    weights = None
    if chosen.class_weights == "balanced":
        weights = losses.class_weights(batching.labels(train_set).astype(int), len(settings.prepare.labels))
    trainer = Trainer(
        length_grouping=chosen.length_grouping, weights=weights, task=recipe.TASK, metric=history.metric,
        model=model, train_dataset=train_set, eval_dataset=dev_set,
        args=TrainingArguments(**training.arguments(chosen, seed, len(train_set), scratch),
                               remove_unused_columns=False),
        data_collator=Collator(model.tokenizer.pad_token_id))
    trainer.parts = parts
    training.follow(trainer, history)
    return trainer, history


def save(model: PreTrainedModel, folder: Path) -> None:
    """Writes the classifier as safetensors with its tokenizer."""
    model.save_pretrained(folder)
    model.tokenizer.model_max_length = model.max_seq_length     # where whoever uses it cuts
    model.tokenizer.save_pretrained(folder)
