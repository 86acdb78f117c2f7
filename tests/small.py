"""Every recipe on a few rows of its samples, without the graph."""

import csv
import json
import shutil
from pathlib import Path

from steps import provenance
from tests.project import ROOT, sample, write_rows

SAMPLES = {"sts": "appliances", "nli": "statements", "cola": "acceptability", "emotion": "moods",
           "tsdae": "reports", "mlm": "reports", "multilingual": "translations"}


def changed(recipe, **train):
    """The recipe with other settings of its training."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def few_rows(entry, name: str, tiny_model: Path, **train):
    """The recipe's entry of params.yaml, on a few rows of its sample in ./raw, with a tiny model and these settings."""
    raw = Path("raw").absolute()
    raw.mkdir()
    for lock in provenance.LOCKS:
        shutil.copy(ROOT / lock, lock)
    (raw / "source.json").write_text('{"name": "sample"}', encoding="utf-8")
    for path in (ROOT / "samples" / SAMPLES[name]).iterdir():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (raw / path.name).write_text("".join(lines[:61 if name == "cola" else 25]), encoding="utf-8")
    if name in ("tsdae", "mlm"):
        for split in ("dev", "test"):
            write_rows(raw / f"suite/{split}.csv", sample(split, 24))
    if name == "multilingual":
        taught(raw, 32)
    values = {"epochs": 1, "batch_size": 8, "mini_batch_size": 4, "learning_rate": 0.001, "precision": "fp32"}
    recipe = changed(entry, **{k: v for k, v in {**values, **train}.items() if k in type(entry.train).model_fields})
    return recipe.model_copy(update={
        "dataset": "raw", "suite": "raw/suite" if (raw / "suite").exists() else "raw",
        "base_model": str(tiny_model), "tasks": recipe.tasks if name in ("tsdae", "mlm") else {}})


def referred(recipe, name: str, data: Path, model: Path) -> dict:
    """Scores a model as a reference of the recipe, by `python -m steps.evaluate` in this folder -> metrics.json."""
    from steps import evaluate, params

    for lock in provenance.LOCKS:
        shutil.copy(ROOT / lock, lock)
    for path, target in ((f"data/prepared/{name}", data), ("models/base/other", model)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).unlink(missing_ok=True)
        Path(path).symlink_to(target)
    entry = json.loads(recipe.model_dump_json()) | {"dataset": "data/raw/few", "suite": "data/raw/few",
                                                    "base_model": "models/base/other"}
    local = {"path": ".", "licence": "x"}
    values = params.read(ROOT / "params.yaml") | {
        "threads": 1, "teachers": {}, "recipes": {name: entry},
        "references": {"it": {"recipe": name, "model": "models/base/other"}},
        "datasets": {"local": {"few": local | {"splits": {"train": "train.csv"}}}, "remote": {}},
        "base_models": {"local": {"other": local}, "remote": {}}}
    Path("params.yaml").write_text(json.dumps(values), encoding="utf-8")
    evaluate.main(["--reference", "it", "out"])
    return json.loads(Path("out/metrics.json").read_text(encoding="utf-8"))


def softmax(recipe):
    """The entry of nli with labelled pairs, for the loss with a classifier of its own."""
    recipe = changed(recipe, loss="softmax")
    Path("raw/train_pairs.csv").rename("raw/train.csv")
    return recipe.model_copy(update={"prepare": recipe.prepare.model_copy(update={"train_rows": "pairs"})})


def taught(raw: Path, dimensions: int) -> None:
    """Turns parallel CSV files into a teacher's data set, with random vectors of that many dimensions."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        with open(raw / f"{split}.csv", encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        vectors = draw.normal(size=(len(rows), dimensions)).astype(np.float32).tolist()
        table = pa.Table.from_pylist([{**row, "vector": vector} for row, vector in zip(rows, vectors, strict=True)])
        pq.write_table(table, raw / f"{split}.parquet")
        (raw / f"{split}.csv").unlink()
