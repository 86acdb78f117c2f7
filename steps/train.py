"""Tokenized splits and a base model -> a trained model with its curves.

python -m steps.train RECIPE DATA MODEL CURVES
"""

import csv
import importlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from steps import command, params, provenance, recipes, seen, tracking
from steps.provenance import sha256
from steps.schema import Recipe

SCRATCH = Path(".evergreen/checkpoints")


def main(arguments: Sequence[str]) -> None:
    recipe, data, model, curves = arguments
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")      # on several the batch would silently grow with them
    project = params.load()
    settings = project.recipe(recipe)
    train(recipe, settings, project, Path(data), Path(model), Path(curves))


def train(name: str, settings: Recipe, project: params.Project, data: Path, model: Path,
          curves: Path) -> None:
    """Writes the model with its lineage.json, loss.csv (by step) and epochs.csv (by epoch, with dev scores)."""
    import torch

    from steps import training

    provenance.check_environment()
    torch.set_num_threads(project.threads)
    kind = importlib.import_module(f"steps.{settings.kind}")
    base_model = Path(settings.base_model)
    summary = json.loads((data / "summary.json").read_text(encoding="utf-8"))
    with tracking.training_run(name, settings, project, summary) as run:
        scratch = SCRATCH / name
        shutil.rmtree(scratch, ignore_errors=True)
        trainer, history = kind.build_trainer(
            recipes.get(name), settings, project.seed, data, base_model, scratch, run.log)
        trainer.train()
        shutil.rmtree(scratch, ignore_errors=True)
        trained = trainer.model
        lineage = {"recipe": name, "base_model": parent(base_model), "dataset": summary["source"],
                   "vocabulary_sha256": provenance.digest(trained.tokenizer.get_vocab())}
        kind.save(trained, model, {"lineage.json": json.dumps(lineage, indent=2) + "\n"})
        write_seen(recipes.get(name), settings, data, base_model, model)
        curves.mkdir(parents=True, exist_ok=True)
        write_csv(curves / "loss.csv", history.loss)
        write_csv(curves / "epochs.csv", history.epochs)
        run.finish(sha256(model / "model.safetensors"), history.table(), training.hardware(settings.train.precision))
    print(history.table(), flush=True)


def write_seen(recipe: ModuleType, settings: Recipe, data: Path, base_model: Path, model: Path) -> None:
    """Writes the keys of the rows that the model was trained on, selected by, or has from its base model."""
    splits = [(data / "train.arrow", recipes.texts(recipe, settings.prepare)), (data / "dev.arrow", recipe.TASK.TEXTS)]
    np.save(model / seen.FILE, seen.of_training(splits, base_model), allow_pickle=False)


def parent(base_model: Path) -> dict:
    """What the base model says of itself: a trained one its lineage, a downloaded one its source."""
    for name in ("lineage.json", "source.json"):
        if (path := base_model / name).exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            return {**found, "weights_sha256": sha256(base_model / "model.safetensors")}
    return {}


def write_csv(path: Path, rows: list[dict]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    command.main(main)
