"""A registered encoder and texts -> vectors in a file."""

import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from steps import contract, provenance, reading, registry
from steps.schema import InputError

if TYPE_CHECKING:
    import numpy as np

ENCODER = "model.sentence_transformer"      # the folder of a stored encoder
VECTORS = "vectors_sha256"                  # in TARGET.json: the digest of the .npy file that it speaks of
CHUNK = 32          # batches read, sorted by length and written together


def load(name: str):
    """'sts@challenger' -> the encoder, its version, and its identity: the name and what changes a vector."""
    version, folder = registry.resolve(name)
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not is_encoder(folder):
        raise InputError(f"{version.recipe}@{version.number} gives classes, not vectors; "
                         f"use it with: evergreen predict {name} TEXT")
    folder /= ENCODER
    model = SentenceTransformer(str(folder), trust_remote_code=False)
    modules = {type(m).__name__: m for m in model}
    identity = {
        "model": f"{version.recipe}@{version.number}",
        "weights_sha256": provenance.sha256(folder / "model.safetensors"),
        "dimension": model.get_embedding_dimension(),
        "pooling": str(modules["Pooling"].pooling_mode) if "Pooling" in modules else "none",
        "normalized": "Normalize" in modules,
        "max_length": model.max_seq_length,
        "tokenizer_sha256": tokenizer_sha256(model.tokenizer, folder),
    }
    return model, version, identity


def tokenizer_sha256(tokenizer, folder: Path) -> str:
    """One digest of the files in the folder that say how its tokenizer cuts a text."""
    files = [folder / name for name in (*tokenizer.vocab_files_names.values(), "tokenizer_config.json")]
    return provenance.digest({path.name: provenance.sha256(path) for path in files if path.is_file()})


def is_encoder(folder: Path) -> bool:
    """Whether a version's folder holds an encoder; else it is a classifier."""
    return (folder / ENCODER).is_dir()


def texts(path: Path, column: str) -> Iterator[str]:
    """The lines of a text file, or the column of a table. An empty text, or half a character, is refused by line."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    column = column if path.name.endswith(reading.TABLES) else "text"
    for line, row in reading.rows(path, [column]):
        if not row[column].strip():
            raise InputError(f"{path}:{line}: the text is empty; remove the line, so that vectors and lines agree")
        if contract.SURROGATE.search(row[column]):
            raise InputError(f"{path}:{line}: the text {contract.HALF}")
        yield row[column]


def embed_file(name: str, source: Path, target: Path, column: str, batch_size: int,
               append: bool = False) -> tuple[str, int, int]:
    """Writes one vector for each text, in their order, with the model's identity beside them.

    Parquet holds `text` and `embedding` and the identity in its metadata; .npy holds float32 [n, dim] and the
    identity lies in TARGET.json. Two files cannot be replaced in one act, so that one holds the digest of the vectors
    it speaks of: after a kill in between it names no other model. The file appears whole or not at all. With `append`
    the vectors follow those that the file has, if the same model made them; else it raises InputError. Returns model,
    n, dim.
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
    earlier = read(target) if append and target.exists() else None
    model, _, identity = load(name)
    if earlier:
        refuse_mixing(target, earlier[0], identity)
        count += len(earlier[2])
    from tqdm import tqdm

    partial = target.with_name(f".{target.name}.partial")
    write = _parquet if target.suffix == ".parquet" else _npy
    rows = texts(source, column)
    with tqdm(total=count, unit="text", desc=identity["model"]) as bar:
        def chunks():
            if earlier:
                yield earlier[1:]
                bar.update(len(earlier[2]))
            while chunk := list(islice(rows, batch_size * CHUNK)):
                yield chunk, model.encode(chunk, batch_size=batch_size, show_progress_bar=False)
                bar.update(len(chunk))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(partial, chunks(), count, identity)
            if target.suffix == ".npy":
                beside = target.with_name(target.name + ".json")
                whose = identity | {VECTORS: provenance.sha256(partial)}
                beside.write_text(json.dumps(whose, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return identity["model"], count, identity["dimension"]


def read(path: Path) -> "tuple[dict, list[str], np.ndarray]":
    """A file of vectors that `embed` wrote -> the identity of the model, the texts (none of .npy), float32 [n, dim].

    Raises InputError where the identity is not there or the vectors are not what it says.
    """
    import numpy as np

    beside = path.with_name(path.name + ".json")
    try:
        if path.suffix == ".npy":
            vectors, texts = np.load(path, allow_pickle=False), []
            identity = json.loads(beside.read_text(encoding="utf-8"))
            said = identity.pop(VECTORS)
        else:
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            identity, texts = json.loads(table.schema.metadata[b"evergreen"]), table["text"].to_pylist()
            flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors = flat.reshape(len(texts), -1) if texts else np.empty((0, identity["dimension"]), np.float32)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a whole file of vectors that `evergreen embed` wrote, or has lost what says "
                         f"which model made them ({error}); embed the texts anew") from None
    if path.suffix == ".npy" and (there := provenance.sha256(path)) != said:
        raise InputError(f"{path} has the sha256 {there[:16]}…, and {beside.name} speaks of vectors of {said[:16]}…: a "
                         "write was cut off between the two; embed the texts anew")
    if vectors.ndim != 2 or vectors.shape[1] != identity.get("dimension"):
        raise InputError(f"{path} holds vectors of shape {vectors.shape} and says they have "
                         f"{identity.get('dimension')} dimensions; embed the texts anew")
    return identity, texts, vectors


def refuse_mixing(path: Path, before: Mapping, now: Mapping) -> None:
    """Raises InputError where the vectors of a file and new ones are of different models: no distance holds between."""
    different = [f"{key} {before.get(key)}, not {value}" for key, value in now.items()
                 if key != "model" and before.get(key) != value]       # one model may be registered twice
    if different:
        raise InputError(f"{path} holds vectors of {before.get('model')}, and {now['model']} makes others "
                         f"({'; '.join(different)}); vectors of different models must not be mixed: embed all texts "
                         "anew into another file")


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
    for _, vectors in chunks:
        out[start:start + len(vectors)] = vectors
        start += len(vectors)
    out.flush()


