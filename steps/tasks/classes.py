"""Texts with one label of several -> accuracy, F1 and Matthews correlation of the classes predicted.

Matthews correlation: Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006, as in CoLA's evaluation
(Warstadt, Singh and Bowman 2019, https://arxiv.org/abs/1805.12471).

| column | type | meaning                                        |
|--------|------|------------------------------------------------|
| text   | text | what is classified                             |
| label  | text | a name of `labels`, or its place among them    |
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from steps import reading, schema, statistics

TEXTS = ("text",)
METRIC = "matthews_correlation"
STATISTICS = {METRIC: statistics.matthews, "f1_macro": statistics.f1_macro, "f1_micro": statistics.accuracy,
              "accuracy": statistics.accuracy}     # one label a text: micro F1 is the accuracy


class Columns(schema.Columns):
    text: str
    label: str


class Rows(schema.Strict):
    columns: Columns
    labels: Annotated[list[str], Field(min_length=2)]

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("names a label twice")
        return value


class Entry(schema.Task, Rows):
    task: Literal["classes"]


def example(row: Mapping[str, str], entry: Rows) -> dict:
    """A text and its label's place."""
    texts = reading.texts(row, entry.columns, TEXTS)
    return {**texts, "label": reading.label(row[entry.columns.label], entry.labels)}


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of [n, classes] logits; nan where they are not finite."""
    if not np.isfinite(logits).all():
        return dict.fromkeys(STATISTICS, float("nan"))
    return {name: float(statistic(labels, prediction(logits, labels))) for name, statistic in STATISTICS.items()}


def prediction(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[n] the class of the highest logit."""
    return logits.argmax(axis=-1)
