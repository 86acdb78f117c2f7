"""Sentence pairs with a graded similarity -> the correlation of the model's similarity with it.

Cer et al. 2017, SemEval-2017 Task 1, https://arxiv.org/abs/1708.00055.

| column    | type  | meaning                            |
|-----------|-------|------------------------------------|
| sentence1 | text  | one sentence                       |
| sentence2 | text  | the other                          |
| score     | float | similarity within score_range      |
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from steps import reading, schema, statistics

TEXTS = ("sentence1", "sentence2")
METRIC = "spearman_cosine"
STATISTICS = {"spearman_cosine": statistics.spearman, "pearson_cosine": statistics.pearson}


class Columns(schema.Columns):
    """The data set's names of the task's columns."""

    sentence1: str
    sentence2: str
    score: str


Bound = Annotated[float, Field(allow_inf_nan=False)]


class Rows(schema.Strict):
    columns: Columns
    score_range: Annotated[list[Bound], Field(min_length=2, max_length=2)]

    @field_validator("score_range")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if not value[0] < value[1]:
            raise ValueError("must be [lowest, highest]")
        return value


class Entry(schema.Task, Rows):
    task: Literal["sts"]


def example(row: Mapping[str, str], entry: Rows) -> dict:
    """Two sentences and their score scaled to [0, 1]."""
    low, high = entry.score_range
    texts = reading.texts(row, entry.columns, TEXTS)
    return {**texts, "label": (reading.number(row[entry.columns.score]) - low) / (high - low)}


def similarities(embeddings: list[np.ndarray]) -> dict[str, np.ndarray]:
    """[n, dim] vectors of both columns -> [n] similarities; distances are negated so that more is more similar."""
    first, second = (e.astype(np.float64) for e in embeddings)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    dot = (first * second).sum(axis=1)
    return {"cosine": dot / norms, "dot": dot, "manhattan": -np.abs(first - second).sum(axis=1),
            "euclidean": -np.linalg.norm(first - second, axis=1)}


def scores(embeddings: list[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Spearman's and Pearson's correlation of every similarity with the labels."""
    found = {}
    for name, values in similarities(embeddings).items():
        found[f"spearman_{name}"] = float(statistics.spearman(labels, values))
        found[f"pearson_{name}"] = float(statistics.pearson(labels, values))
    return found


def prediction(embeddings: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """[n] cosine similarities, comparable with the labels."""
    return similarities(embeddings)["cosine"]
