"""A registered encoder and texts -> vectors in a file."""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from steps import provenance, reading, registry
from steps.schema import InputError

CHUNK = 32          # batches read, sorted by length and written together


def load(name: str):
    """'sts@challenger' -> the encoder, and what it is: model, weights_sha256, dimension, pooling, normalized."""
    version, folder = registry.resolve(name)
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder /= "model.sentence_transformer"
    if not folder.is_dir():
        raise InputError(f"{version.recipe}@{version.number} gives classes, not vectors; "
                         f"use it with: evergreen predict {name} TEXT")
    model = SentenceTransformer(str(folder), trust_remote_code=False)
    modules = {type(m).__name__: m for m in model}
    identity = {
        "model": f"{version.recipe}@{version.number}",
        "weights_sha256": provenance.sha256(folder / "model.safetensors"),
        "dimension": model.get_embedding_dimension(),
        "pooling": str(modules["Pooling"].pooling_mode) if "Pooling" in modules else "none",
        "normalized": "Normalize" in modules,
    }
    return model, version, identity


def texts(path: Path, column: str) -> Iterator[str]:
    """The lines of a text file, or the column of a table. An empty text is refused by line."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    column = column if path.name.endswith(reading.TABLES) else "text"
    for line, row in reading.rows(path, [column]):
        if not row[column].strip():
            raise InputError(f"{path}:{line}: the text is empty; remove the line, so that vectors and lines agree")
        yield row[column]


def embed_file(name: str, source: Path, target: Path, column: str, batch_size: int) -> tuple[str, int, int]:
    """Writes one vector for each text, in their order, with the model's identity beside them.

    Parquet holds `text` and `embedding` and the identity in its metadata; .npy holds float32 [n, dim] and the
    identity lies in TARGET.json. The file appears whole or not at all. Returns model, n, dim.
    """
    if target.suffix not in (".parquet", ".npy"):
        raise InputError(f"{target}: the output must end in .parquet or .npy")
    if target.resolve() == source.resolve():
        raise InputError(f"{target}: the output would replace the input; name another file")
    if target.is_dir():
        raise InputError(f"{target} is a folder; name a file")
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: must be at least 1")
    count = sum(1 for _ in texts(source, column))
    if not count:
        raise InputError(f"{source} holds no text")
    model, _, identity = load(name)
    from tqdm import tqdm

    partial = target.with_name(f".{target.name}.partial")
    write = _parquet if target.suffix == ".parquet" else _npy
    rows = texts(source, column)
    with tqdm(total=count, unit="text", desc=identity["model"]) as bar:
        def chunks():
            while chunk := list(islice(rows, batch_size * CHUNK)):
                yield chunk, model.encode(chunk, batch_size=batch_size, show_progress_bar=False)
                bar.update(len(chunk))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(partial, chunks(), count, identity)
            if target.suffix == ".npy":
                beside = target.with_name(target.name + ".json")
                beside.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return identity["model"], count, identity["dimension"]


def _parquet(path: Path, chunks, count: int, identity: dict) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("text", pa.string()), ("embedding", pa.list_(pa.float32(), identity["dimension"]))],
                       metadata={"evergreen": json.dumps(identity)})
    with pq.ParquetWriter(path, schema) as writer:
        for chunk, vectors in chunks:
            flat = pa.array(vectors.ravel(), pa.float32())
            column = pa.FixedSizeListArray.from_arrays(flat, identity["dimension"])
            writer.write_table(pa.table([pa.array(chunk), column], schema=schema))


def _npy(path: Path, chunks, count: int, identity: dict) -> None:
    import numpy as np

    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, identity["dimension"]))
    start = 0
    for chunk, vectors in chunks:
        out[start:start + len(chunk)] = vectors
        start += len(chunk)
    out.flush()


