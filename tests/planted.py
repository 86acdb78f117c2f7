"""Models whose quality is planted, and files and tags that are changed for a while."""

import contextlib
from pathlib import Path

import pyarrow as pa
from safetensors.torch import load_file, save_file

from steps import batching, embedding, params
from steps.recipes import sts

TEST = Path("data/prepared/sts/test.arrow")
MODEL = Path("models/sts")


def plant(project: params.Project) -> None:
    """Gives the test rows as labels what the trained model says of them: it is right, every other model is worse."""
    settings = project.recipe("sts")
    texts = batching.texts(TEST, sts.TASK.TEXTS)
    said = sts.TASK.prediction(embedding.outputs(embedding.load(MODEL, settings), list(texts.values()), 64), None)
    table = pa.ipc.open_stream(TEST.read_bytes()).read_all()
    place = table.column_names.index("label")
    table = table.set_column(place, "label", pa.array((said + 1) / 2, pa.float32()))
    with pa.OSFile(str(TEST), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def spoil(folder: Path) -> None:
    """Adds noise to the word vectors."""
    import torch

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name] += torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@contextlib.contextmanager
def changed(path: Path):
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        yield
    finally:
        path.write_bytes(before)


@contextlib.contextmanager
def tagged(found, number: int, tag: str, value: str | None):
    before = found.get_model_version("sts", str(number)).tags[tag]
    found.delete_model_version_tag("sts", str(number), tag)
    if value is not None:
        found.set_model_version_tag("sts", str(number), tag, value)
    try:
        yield
    finally:
        found.set_model_version_tag("sts", str(number), tag, before)
