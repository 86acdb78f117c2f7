"""The rows a model was trained on -> 64-bit keys, by which a row of a test set is recognised as one of them.

A row of one text has its text's key. A row of more has a key for its first text with each of the others, whichever
way round, so that a triplet is recognised by its pair. Texts are compared after Unicode's NFKC, in lower case, with
white space collapsed.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from steps.provenance import digest

FILE = "seen.npy"       # beside a model's weights; it holds the keys of the models it descends from too


def keys(columns: Sequence[Sequence[str]]) -> np.ndarray:
    """Columns of n texts -> [n, 1 or columns - 1] keys, uint64."""
    first, *others = ([_normal(text) for text in column] for column in columns)
    parts = [zip(first, other, strict=True) for other in others] or [zip(first, strict=True)]
    return np.stack([np.fromiter((_key(sorted(part)) for part in rows), np.uint64) for rows in parts], axis=1)


def rows(columns: Sequence[Sequence[str]], known: np.ndarray) -> np.ndarray:
    """[n] True where a row's key is among the known ones."""
    return np.isin(keys(columns), known).any(axis=1)


def of_training(splits: Sequence[tuple[Path, Sequence[str]]], base_model: Path) -> np.ndarray:
    """The sorted keys of the splits' rows, given as (Arrow file, its text columns), and of the base model's."""
    import pyarrow as pa

    found = [read(base_model)]
    for path, names in splits:
        with pa.memory_map(str(path)) as source:
            for batch in pa.ipc.open_stream(source):
                found.append(keys([batch.column(name).to_pylist() for name in names]).ravel())
    return np.unique(np.concatenate(found))


def content_sha256(path: Path) -> str:
    """One digest of an Arrow file's rows as people know them: texts, labels and sources, whatever the tokenizer."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_stream(source).read_all()
    names = [n for n in table.column_names if table[n].type == pa.string() or n == "label"]
    return digest({name: table[name].to_pylist() for name in names})


def read(model: Path) -> np.ndarray:
    """The keys beside a model; none where it was not trained here."""
    return load(model / FILE)


def load(path: Path | None) -> np.ndarray:
    return np.load(path, allow_pickle=False) if path and path.exists() else np.empty(0, np.uint64)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _key(texts: Sequence[str]) -> int:
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")
