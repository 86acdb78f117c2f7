"""Parallel sentences -> how often a sentence's nearest neighbour in the other language is its translation.

Artetxe and Schwenk 2019, https://arxiv.org/abs/1812.10464 (Tatoeba); the library's TranslationEvaluator.

| column      | type | meaning              |
|-------------|------|----------------------|
| english     | text | a sentence           |
| non_english | text | its translation      |
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from steps import reading, schema, statistics

TEXTS = ("english", "non_english")
METRIC = "mean_accuracy"
STATISTICS = {METRIC: statistics.mean}
BLOCK = 1000        # rows of the similarity matrix held at once


class Columns(schema.Columns):
    english: str
    non_english: str


class Rows(schema.Strict):
    columns: Columns


class Entry(schema.Task, Rows):
    task: Literal["translation"]


def example(row: Mapping[str, str], entry: Rows) -> dict:
    """Both texts."""
    return reading.texts(row, entry.columns, TEXTS)


def matches(embeddings: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """[n] booleans each way: is the nearest by cosine the translation, or a text of the very same vector?"""
    first, second = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in embeddings)
    return _nearest(first, second), _nearest(second, first)


def _nearest(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    found = []
    for start in range(0, len(first), BLOCK):
        similar = first[start:start + BLOCK] @ second.T
        rows = np.arange(len(similar))
        found.append(similar[rows, rows + start] >= similar.max(axis=1))
    return np.concatenate(found)


def scores(embeddings: list[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Accuracy each way and their mean; where labels are the teacher's vectors [n, dim], the students' error x 100."""
    if not all(np.isfinite(e).all() for e in embeddings):
        return {METRIC: float("nan")}
    there, back = matches(embeddings)
    found = {"src2trg_accuracy": float(there.mean()), "trg2src_accuracy": float(back.mean()),
             METRIC: float((there.mean() + back.mean()) / 2)}
    if labels.ndim == 2 and labels.shape[1] == embeddings[0].shape[1]:
        found["negative_mse"] = -100 * float(np.mean([(e - labels) ** 2 for e in embeddings]))
    return found


def prediction(embeddings: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """[n] 1 where both nearest neighbours are right, 0.5 where one is, else 0."""
    return np.mean(matches(embeddings), axis=0)
