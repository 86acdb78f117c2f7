"""Tokenized texts and a base model -> a trained sentence encoder, and vectors from one."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from steps import batching, ranks, recipes, schema, training
from steps.resuming import Resumable
from steps.schema import InputError

COLLAPSED = 1e-6    # of their length, within which vectors of different texts are the same
LEFT = 0.02         # of how far apart the first model has the vectors, below which those of the trained one collapsed
FIRST = 64          # texts of dev by which that is measured
FEW = 4             # texts of a batch that are looked at for it


def encoder(path: Path, max_length: int, pooling: str | None) -> SentenceTransformer:
    """The encoder in `path`, in fp32; one without sentence-transformers modules gets the pooling named, or mean.

    The library loads 16-bit weights as they are, and steps of training are too small for those: nothing is learnt.
    """
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformers_logging.disable_progress_bar()
    if not list(path.glob("*.safetensors")):
        raise InputError(f"{path} has no model.safetensors; other formats of weights are not loaded")
    if (path / "modules.json").exists():
        model = SentenceTransformer(str(path), trust_remote_code=False, local_files_only=True)
    else:
        words = Transformer(str(path), processor_kwargs={"local_files_only": True})     # saved with the tokenizer
        pooled = Pooling(words.get_embedding_dimension(), pooling_mode=pooling or "mean")
        model = SentenceTransformer(modules=[words, pooled])
    model.max_seq_length = max_length
    return model.float()


def pool(model: SentenceTransformer, pooling: str | None) -> None:
    """Gives the encoder the pooling named in place of its own. Raises InputError where it has none to change."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    place = next((place for place, module in enumerate(model) if isinstance(module, Pooling)), None)
    if pooling is None or (place is not None and model[place].pooling_mode == pooling):
        return
    if place is None or not isinstance(model[place].pooling_mode, str):
        raise InputError(f"train.pooling is {pooling}, and the base model's vectors are not pooled from those of its "
                         "words, or in several ways; set it to null")
    model[place] = Pooling(**model[place].get_config_dict() | {"pooling_mode": pooling})


def embed(model: SentenceTransformer, texts: list[list[int]], batch_size: int) -> np.ndarray:
    """Token ids of n texts -> [n, dim] float32, computed longest first so that padding is small."""
    vectors = None
    model.eval()
    with torch.inference_mode():
        for chosen, features in batching.longest_first(texts, batch_size, model.tokenizer.pad_token_id, model.device):
            found = model(features)["sentence_embedding"].float().cpu().numpy()
            if vectors is None:
                vectors = np.empty((len(texts), found.shape[1]), np.float32)
            vectors[chosen] = found
    return vectors


def load(path: Path, settings: schema.Recipe) -> SentenceTransformer:
    """The encoder in `path` as the recipe uses it."""
    return encoder(path, settings.prepare.max_length, settings.train.pooling)


def outputs(model: SentenceTransformer, columns: Sequence[list[str]], batch_size: int) -> list[np.ndarray]:
    """[n, dim] vectors of each column of texts, cut into tokens by the model's own tokenizer."""
    return [embed(model, model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"],
                  batch_size) for texts in columns]


def spread(embeddings: Sequence[np.ndarray]) -> float:
    """How far apart the vectors of different texts are at most in one dimension, as a share of their length."""
    vectors = np.concatenate(embeddings)
    with np.errstate(invalid="ignore"):     # of vectors of zeros it is not a number
        return float(np.ptp(vectors, axis=0).max() / np.linalg.norm(vectors[0]))


def collapsed(embeddings: Sequence[np.ndarray], least: float) -> bool:
    """Whether all texts have one vector, within this spread, or one that is not finite."""
    return not spread(embeddings) > least


class DevScores(BaseEvaluator):
    """The task's scores on the dev split, from the tokens that prepare left."""

    def __init__(self, task: ModuleType, dataset, batch_size: int, metric: str, least: float):
        super().__init__()
        self.task, self.dataset, self.batch_size, self.least = task, dataset, batch_size, least
        self.primary_metric = metric

    def __call__(self, model, output_path=None, epoch=-1, steps=-1) -> dict[str, float]:
        embeddings = [embed(model, self.dataset[name + batching.IDS][:], self.batch_size) for name in self.task.TEXTS]
        scores = self.task.scores(embeddings, batching.labels(self.dataset))
        if collapsed(embeddings, self.least) or not math.isfinite(scores[self.primary_metric]):
            raise InputError(f"dev {self.primary_metric} is {scores[self.primary_metric]}: the embeddings have "
                             "collapsed or the dev labels are constant; lower train.learning_rate or mend the data")
        return scores


class Trainer(Resumable, SentenceTransformerTrainer):
    """The library's trainer, fed with batches of similar length, or whose parts are.

    `counted(batch)` is how many things the loss of a batch is a mean over, where those are not its rows; `saving` is
    how many tokens of padding make a further part of a batch worth it, none where None; `least` is the spread of
    vectors that are not collapsed. A loss with layers of its own computes them in the precision of training too; the
    library's has the encoder alone in it.
    """

    def __init__(self, *args, length_grouping: int, saving: int | None, keys: np.ndarray | None,
                 counted: Callable | None, least: float, **kwargs):
        self.length_grouping, self.saving, self.keys = length_grouping, saving, keys
        self.counted, self.least = counted, least
        super().__init__(*args, **kwargs)
        encoders = {id(weight) for weight in self.model.parameters()}
        self.has_layers = any(id(weight) not in encoders for weight in self.loss.parameters())

    def add_model_card_callback(self, default_args_dict):
        """No generated card: it holds clocks and machines; Evergreen writes its own (steps/register.py)."""

    def get_batch_sampler(self, dataset, batch_size, drop_last, valid_label_columns=None, generator=None, seed=0):
        keys = self.keys if dataset is self.train_dataset else None
        batches = batching.LengthGroupedBatches(batching.lengths(dataset), batch_size, self.length_grouping, seed, keys)
        if dataset is self.train_dataset:
            self.batches = self.data_collator.batches = batches
        if keys is not None and (left := len(keys) - sum(map(len, batches))):
            training.say(f"{left} of {len(keys)} rows of train find no batch of {batch_size} without their texts, and "
                         "an epoch goes without them (each without others): lower train.batch_size, or choose a loss "
                         "that allows repeats")
        return batches

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        self.accelerator.even_batches = False
        return self.prepared(self._build_dataloader(self.train_dataset, self.args.train_batch_size, "train"))

    def get_eval_dataloader(self, eval_dataset=None) -> torch.utils.data.DataLoader:
        if ranks.world() == 1 or self.eval_dataset is None:
            return super().get_eval_dataloader(eval_dataset)
        return self._build_dataloader(self.eval_dataset, self.args.eval_batch_size, "eval")     # the whole, on each

    def _wrap_model(self, model, training=True, dataloader=None) -> torch.nn.Module:
        """The library would wrap the model alone; a loss may have weights of its own, or use the model's by itself."""
        if ranks.world() == 1 or not training:
            return super()._wrap_model(model, training, dataloader)
        self.accelerator.prepare_model(self.model, evaluation_mode=True)        # its precision, and no wrapper
        return ranks.wrapped(self.trained(), lambda inputs: self.compute_loss(self.model, inputs))

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        looks = self.state.global_step % self.args.logging_steps == 0
        features = self.collect_features(inputs)[0][0] if looks else None
        loss = super().training_step(model, inputs, num_items_in_batch)
        if looks and self.one_for_all(features):
            raise self.refused("the embeddings have collapsed: all texts have one vector")
        return loss

    def one_for_all(self, features: dict[str, torch.Tensor]) -> bool:
        """Whether a few different texts of the batch have one vector; without dropout, and no random state moves."""
        few = {name: value[:FEW].to(self.model.device) for name, value in features.items()
               if isinstance(value, torch.Tensor)}
        if len({tuple(text) for text in few["input_ids"].tolist()}) < 2:
            return False
        self.model.eval()
        with torch.inference_mode():
            vectors = self.model(few)["sentence_embedding"].float().cpu().numpy()
        self.model.train()
        return collapsed([vectors], self.least)

    def counts(self, batch) -> float:
        return float(self.counted(batch)) if self.counted else super().counts(batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model is self.model:
            with self.accelerator.autocast() if self.has_layers else nullcontext():
                loss = super().compute_loss(model, inputs) if self.saving is None else self.loss_of_parts(inputs)
            return (loss, {}) if return_outputs else loss
        rows = inputs.pop("rows")
        if hasattr(self.loss, "rows"):
            self.loss.rows = rows
            return self.compute_loss(self.model, inputs) if self.caches() else model(inputs)
        count = ranks.rows_of(ranks.rank(), rows)
        if self.counted:
            count = float(self.counted(inputs)) if count else 0.0
            rows, = ranks.total(count)
        return model(inputs) * ranks.share(count, rows)

    def loss_of_parts(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of a batch, in which each part has its share of the mean."""
        parts = [part for part in batching.parts(inputs, self.saving) if self.counts(part)]
        return sum(self.counts(part) * super(Trainer, self).compute_loss(self.model, part) for part in parts
                   ) / self.counts(inputs)


def build_trainer(recipe: ModuleType, settings: schema.Recipe, seed: int, data: Path, base_model: Path,
                  scratch: Path, log: training.Log, parts: int = 1) -> tuple[Trainer, training.History]:
    """The library's trainer with the recipe's loss on data/train.arrow, ready to train.

    The loss on dev is of held-out text where data/held_out.arrow is there, of dev where its columns are train's.
    """
    set_seed(seed)      # before the base model is loaded: layers that its files lack start at random
    chosen = settings.train
    names = recipes.texts(recipe, settings.prepare)
    train_set, dev_set = batching.load(data / "train.arrow"), batching.load(data / "dev.arrow")
    unseen = batching.load(path) if (path := data / "held_out.arrow").exists() else (
        dev_set if names == recipe.TASK.TEXTS else None)
    model = load(base_model, settings)
    pool(model, chosen.pooling)
    few = embed(model, dev_set[recipe.TASK.TEXTS[0] + batching.IDS][:FIRST], chosen.eval_batch_size)
    least = max(COLLAPSED, LEFT * spread([few]))
    history = training.History(chosen.metric, recipe.METRIC, chosen.evaluations, chosen.patience, log)
    collator = recipe.collator(model.tokenizer, settings, seed) if hasattr(recipe, "collator") else (
        batching.Collator(model.tokenizer.pad_token_id))
    no_duplicates = getattr(chosen, "no_duplicates", False)
    smaller = recipe.in_parts(chosen, parts) if parts > 1 and hasattr(recipe, "in_parts") else None
    loss = recipe.loss(model, smaller or chosen, train_set).float()     # a decoder or head that it loads as well
    training.set_dropout(chosen.dropout, model)
    trainer = Trainer(
        length_grouping=chosen.length_grouping,
        saving=None if torch.cuda.is_available() else getattr(chosen, "split_saving", None),
        keys=batching.keys(data / "train.arrow", names) if no_duplicates else None,
        counted=getattr(recipe, "counted", None), least=least,
        model=model, train_dataset=train_set, eval_dataset=unseen,
        loss=loss,
        args=SentenceTransformerTrainingArguments(**training.arguments(chosen, seed, len(train_set), scratch)),
        evaluator=DevScores(recipe.TASK, dev_set, chosen.eval_batch_size, history.metric, least),
        data_collator=collator)
    trainer.parts, trainer.by_rows = parts, smaller is None
    training.follow(trainer, history)
    return trainer, history


def save(model: SentenceTransformer, folder: Path) -> None:
    """Writes the encoder as safetensors, the same bytes wherever and however often."""
    model.save(str(folder), create_model_card=False, safe_serialization=True)
