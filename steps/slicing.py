"""The rows of a test set -> its parts: thirds by length, labels and sources."""

from collections.abc import Mapping, Sequence
from types import ModuleType

import numpy as np

LENGTHS = ("short", "medium", "long")
SMALLEST_SLICE = 10     # rows; of fewer nothing can be said
LABEL = "label: "       # of one class alone there is no correlation; the share of it that is found says something


def parts(task: ModuleType, labels: np.ndarray, texts: Mapping[str, Sequence[str]],
          names: Sequence[str]) -> dict[str, np.ndarray]:
    """{part: [n] True where a row is in it}: by words of the row, by label (`names`) and by source."""
    words = np.array([sum(len(t.split()) for t in row) for row in zip(*(texts[c] for c in task.TEXTS), strict=True)])
    third = np.searchsorted(np.quantile(words, [1 / 3, 2 / 3]), words)
    found = {f"length: {name}": third == number for number, name in enumerate(LENGTHS)}
    found |= {f"{LABEL}{name}": labels == place for place, name in enumerate(names)}
    found |= {f"source: {name}": np.array(texts["source"]) == name for name in dict.fromkeys(texts.get("source", ()))}
    return {name: chosen for name, chosen in found.items() if chosen.sum() >= SMALLEST_SLICE}
