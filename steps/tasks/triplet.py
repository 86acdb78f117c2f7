"""Triplets (anchor, positive, negative) -> the share in which the anchor lies nearer to the positive.

Schroff, Kalenichenko and Philbin 2015, https://arxiv.org/abs/1503.03832; the library's TripletEvaluator.

| column   | type | meaning                                  |
|----------|------|------------------------------------------|
| anchor   | text | a sentence                               |
| positive | text | one that belongs to it                   |
| negative | text | one that does not, the harder the better |
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from steps import reading, schema, statistics
from steps.tasks import sts

TEXTS = ("anchor", "positive", "negative")
METRIC = "accuracy_cosine"
STATISTICS = {METRIC: statistics.mean}


class Columns(schema.Columns):
    anchor: str
    positive: str
    negative: str


class Rows(schema.Strict):
    columns: Columns


class Entry(schema.Task, Rows):
    task: Literal["triplet"]


def example(row: Mapping[str, str], entry: Rows) -> dict:
    """Three texts."""
    return reading.texts(row, entry.columns, TEXTS)


def margins(embeddings: list[np.ndarray]) -> dict[str, np.ndarray]:
    """[n] how much nearer the positive is than the negative, by each similarity."""
    anchor, positive, negative = embeddings
    near, far = sts.similarities([anchor, positive]), sts.similarities([anchor, negative])
    return {name: near[name] - far[name] for name in near}


def scores(embeddings: list[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """The accuracy by cosine, dot product, Manhattan and Euclidean distance."""
    return {f"accuracy_{name}": float((margin > 0).mean()) if np.isfinite(margin).all() else float("nan")
            for name, margin in margins(embeddings).items()}


def prediction(embeddings: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """[n] 1 where the anchor is nearer to the positive by cosine, else 0."""
    return (margins(embeddings)["cosine"] > 0).astype(np.float64)
