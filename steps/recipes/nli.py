"""Triplets or labelled pairs of sentences -> an encoder that tells what follows from what does not.

Loss `multiple_negatives`: Henderson et al. 2017, https://arxiv.org/abs/1705.00652; every other text of the batch is
a negative too, so no text stands in a batch twice. `cached` is the same over mini batches, for batches that do not
fit (Gao et al. 2021, https://arxiv.org/abs/2101.06983). `triplet`: Schroff et al. 2015,
https://arxiv.org/abs/1503.03832. `softmax`: Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084.

| rows     | columns                      |                                                             |
|----------|------------------------------|-------------------------------------------------------------|
| triplets | anchor, positive, negative   | of dev and test always, of train for every loss but softmax |
| pairs    | premise, hypothesis, label   | of train for softmax; 0 entailment, 1 neutral, 2 contradiction |
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import model_validator

from steps import reading, schema
from steps.tasks import triplet as task

TASK = task
METRIC = task.METRIC
LABELS = ("entailment", "neutral", "contradiction")


class PairColumns(schema.Columns):
    premise: str
    hypothesis: str
    label: str


class Prepare(schema.Prepare, task.Rows):
    train_rows: Literal["triplets", "pairs"]
    pair_columns: PairColumns
    split: schema.Split


class Train(schema.EmbeddingTrain):
    """batch_size sets how many negatives an anchor sees; gradient_accumulation adds none. mini_batch_size is what
    `cached` computes at once."""

    loss: Literal["multiple_negatives", "cached", "triplet", "softmax"]
    mini_batch_size: schema.Positive
    metric: Literal["accuracy_cosine", "accuracy_dot", "accuracy_manhattan", "accuracy_euclidean"]

    @property
    def no_duplicates(self) -> bool:
        """Whether equal texts in one batch would be taken for negatives of each other."""
        return self.loss in ("multiple_negatives", "cached")


class Params(schema.Recipe):
    kind: Literal["embedding"]
    prepare: Prepare
    train: Train

    @model_validator(mode="after")
    def _rows_suit_the_loss(self):
        if (self.train.loss == "softmax") != (self.prepare.train_rows == "pairs"):
            raise ValueError(f"loss {self.train.loss} and train_rows {self.prepare.train_rows} do not go together: "
                             "softmax learns from pairs, every other loss from triplets")
        if self.train.no_duplicates and self.train.batch_size < 2:
            raise ValueError(f"loss {self.train.loss} with batch_size 1 learns nothing: the other rows of a batch are "
                             "the negatives; raise batch_size")
        return self


def columns(prepare: Prepare) -> schema.Columns:
    return prepare.pair_columns if prepare.train_rows == "pairs" else prepare.columns


def texts(prepare: Prepare) -> tuple[str, ...]:
    return ("premise", "hypothesis") if prepare.train_rows == "pairs" else task.TEXTS


def examples(row: Mapping[str, str], prepare: Prepare) -> Iterable[dict]:
    """A triplet, or a pair with its label's number."""
    if prepare.train_rows == "triplets":
        return [task.example(row, prepare)]
    found = reading.texts(row, prepare.pair_columns, ("premise", "hypothesis"))
    return [{**found, "label": reading.label(row[prepare.pair_columns.label], LABELS)}]


def in_parts(train: Train, parts: int) -> Train | None:
    """The same loss with so much less in memory, where rows of a batch cannot be cut apart: each is a negative of the
    others."""
    if not train.no_duplicates:
        return None
    at_once = train.mini_batch_size if train.loss == "cached" else train.batch_size
    return train.model_copy(update={"loss": "cached", "mini_batch_size": max(1, at_once // parts)})


def loss(model, train: Train, rows):
    from sentence_transformers.sentence_transformer.losses import SoftmaxLoss, TripletLoss

    from steps import losses

    match train.loss:
        case "multiple_negatives":
            return losses.SharedNegatives(model)
        case "cached":
            return losses.CachedSharedNegatives(model, mini_batch_size=train.mini_batch_size)
        case "triplet":
            return TripletLoss(model)
        case "softmax":
            return SoftmaxLoss(model, model.get_embedding_dimension(), num_labels=len(LABELS))
