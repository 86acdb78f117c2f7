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
SAME = 1 - 1e-6     # cosine from which on two vectors are of one text: in another batch its last bits may differ


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
    """[n] booleans each way: is the nearest by cosine the translation, or one of the same text?

    That is a row with the same vector on either side: a text that stands there twice, or in two other languages.
    """
    first, second = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in embeddings)
    found = []
    for ours, theirs in ((first, second), (second, first)):
        nearest = np.concatenate([(ours[start:start + BLOCK] @ theirs.T).argmax(axis=1)
                                  for start in range(0, len(ours), BLOCK)])
        found.append((nearest == np.arange(len(ours))) | _same(ours, ours[nearest]) | _same(theirs, theirs[nearest]))
    return found[0], found[1]


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=1) >= SAME


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
