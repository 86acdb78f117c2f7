"""Examples -> the splits they lack, and smaller runs, a pure function of a seed."""

from collections.abc import Sequence

import numpy as np

from steps.decontamination import normal
from steps.schema import Split, Subset


def split_off(splits: dict[str, list[dict]], texts: Sequence[str], missing: Sequence[str],
              shares: Split) -> dict[str, list[dict]]:
    """Takes the missing splits from train, whole groups at a time: no text stands in two splits.

    Groups are drawn in random order into the first split with room for them, so none exceeds its share.
    """
    train = splits["train"]
    groups = _groups([[e[c] for c in texts] for e in train])
    sizes = np.bincount(groups)
    room = {split: round(len(train) * getattr(shares, split)) for split in missing}
    place = ["train"] * len(sizes)
    for group in np.random.default_rng(shares.seed).permutation(len(sizes)):
        for split in missing:
            if sizes[group] <= room[split]:
                place[group] = split
                room[split] -= sizes[group]
                break
    found = {split: [example for example, group in zip(train, groups, strict=True) if place[group] == split]
             for split in ("train", *missing)}
    return {**splits, **found}


def subset(splits: dict[str, list[dict]], wanted: Subset) -> dict[str, list[dict]]:
    """Fewer rows of train and dev, those that datasets.Dataset.shuffle(seed).select(range(n)) gives."""
    def drawn(rows: list[dict], count: int) -> list[dict]:
        order = np.random.default_rng(wanted.seed).permutation(len(rows))
        return [rows[i] for i in order[:count]]

    return {**splits, "train": drawn(splits["train"], wanted.train), "dev": drawn(splits["dev"], wanted.dev)}


def _groups(texts: list[list[str]]):
    """[n] group of each example; examples that share a text, as decontamination compares them, share a group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ids: dict[str, int] = {}
    pairs = [(row, ids.setdefault(normal(text), len(ids))) for row, found in enumerate(texts) for text in found]
    rows, columns = np.array(pairs).T
    size = len(texts) + len(ids)
    links = coo_matrix((np.ones(len(rows)), (rows, columns + len(texts))), shape=(size, size))
    return np.unique(connected_components(links, directed=False)[1][:len(texts)], return_inverse=True)[1]
