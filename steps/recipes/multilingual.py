"""Parallel sentences with a teacher's vectors -> a student that gives both languages the teacher's vector.

Reimers and Gurevych 2020, https://arxiv.org/abs/2004.09813. The data set is a teacher's: data/taught/NAME.

| column      | type   | meaning                                  |
|-------------|--------|------------------------------------------|
| english     | text   | a sentence                               |
| non_english | text   | its translation                          |
| vector      | floats | the teacher's vector of the English side |
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import model_validator

from steps import schema
from steps.schema import InputError
from steps.tasks import translation as task

TASK = task
METRIC = task.METRIC


class Columns(task.Columns):
    vector: str


class Prepare(schema.Prepare):
    columns: Columns
    split: schema.Split


class Train(schema.EmbeddingTrain):
    metric: Literal["mean_accuracy", "negative_mse"]


class Params(schema.Recipe):
    kind: Literal["embedding"]
    prepare: Prepare
    train: Train

    @model_validator(mode="after")
    def _is_taught(self):
        if not self.dataset.startswith("data/taught/"):
            raise ValueError(f"dataset {self.dataset!r} has no teacher's vectors; declare it under teachers and use "
                             "data/taught/NAME")
        return self


def examples(row: Mapping[str, str | list[float]], prepare: Prepare) -> Iterable[dict]:
    """Both texts and the teacher's vector [dim]."""
    return [{**task.example(row, prepare), "label": row[prepare.columns.vector]}]


def held_out(row: Mapping[str, str | list[float]], prepare: Prepare) -> dict:
    return examples(row, prepare)[0]


def loss(model, train: Train, rows):
    """Mean squared error between the teacher's vector and the student's of both texts."""
    from sentence_transformers.sentence_transformer.losses import MSELoss

    teacher, student = len(rows[0]["label"]), model.get_embedding_dimension()
    if teacher != student:
        raise InputError(f"the teacher's vectors have {teacher} dimensions and the student's {student}; give the "
                         f"teacher in params.yaml dimensions: {student}")
    return MSELoss(model)
