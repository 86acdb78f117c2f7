"""Tokenized splits and a base model -> a trained model with its curves.

python -m steps.train [--rank] RECIPE DATA MODEL CURVES
"""

import csv
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np

from steps import checkpoint, command, launching, params, provenance, recipes, seen, tasks, tracking
from steps.provenance import sha256
from steps.schema import InputError, Recipe


def main(arguments: Sequence[str]) -> None:
    is_rank = arguments[0] == launching.RANK
    recipe, data, model, curves = arguments[is_rank:]
    project = params.load()
    settings = project.recipe(recipe)

    def body() -> None:
        train(recipe, settings, project, Path(data), Path(model), Path(curves))

    if is_rank:
        launching.as_rank(body)
    elif settings.train.processes * settings.train.nodes > 1:
        launching.start(arguments, settings.train, project.threads)
    else:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")      # of several, the library would use each by halves
        body()


def alone(arguments: Sequence[str]) -> None:
    """Nobody else trains the recipe here meanwhile: it has one place for checkpoints, whatever is written."""
    if not launching.writes(arguments):
        main(arguments)
        return
    with command.only_one(command.LOCKS / f"training-{arguments[0]}", f"the training of {arguments[0]}", command.WAIT):
        main(arguments)


def train(name: str, settings: Recipe, project: params.Project, data: Path, model: Path,
          curves: Path) -> None:
    """Writes the model with its lineage.json, loss.csv (by step) and epochs.csv (by epoch, with dev scores).

    Of several ranks, the first does.
    """
    import torch

    from steps import ranks, training

    provenance.check_environment()
    torch.set_num_threads(max(1, project.threads // settings.train.processes))
    kind = importlib.import_module(f"steps.{settings.kind}")
    base_model = Path(settings.base_model)
    summary = json.loads((data / "summary.json").read_text(encoding="utf-8"))
    hardware = training.hardware(settings.train.precision)
    tracked = tracking.training_run(name, settings, project, summary) if ranks.first() else nullcontext(tracking.Run())
    with tracked as run:
        def build(parts: int):
            trainer = kind.build_trainer(recipes.get(name), settings, project.seed, data, base_model,
                                         checkpoint.PLACE / name, run.log, parts)[0]
            trainer.checkpoints = checkpoint.Checkpoints(
                checkpoint.PLACE / name, project.checkpoint_seconds,
                agreed(lambda: fingerprint(name, settings, project, data, base_model, hardware)))
            return trainer

        trainer = fit(build, 1 if ranks.world() > 1 else int(os.environ.get(checkpoint.PARTS, "1")))
        if not ranks.first():
            return
        trained, history = trainer.model, trainer.history
        lineage = {"recipe": name, "base_model": parent(base_model), "dataset": summary["source"],
                   "vocabulary_sha256": provenance.digest(trained.tokenizer.get_vocab())}
        if trainer.parts > 1:
            lineage["batches_computed_in_parts"] = trainer.parts
        with command.whole(curves) as partial:
            write_csv(partial / "loss.csv", history.loss)
            write_csv(partial / "epochs.csv", history.epochs)
        with command.whole(model) as partial:
            kind.save(trained, partial)
            (partial / "lineage.json").write_text(json.dumps(lineage, indent=2) + "\n", encoding="utf-8")
            write_seen(recipes.get(name), settings, data, base_model, partial)
        run.finish(sha256(model / "model.safetensors"), history.table(), hardware)
        if checkpoint.DRIVEN not in os.environ:
            trainer.checkpoints.clear()
    print(history.table(), flush=True)


def fit(build: Callable, parts: int = 1):
    """The trainer that `build(parts)` made, trained: from the newest checkpoint on, to the bits that a training
    without an interruption has. Where memory is too small, once more with each batch computed in two parts.

    Raises InputError where it is too small for that as well.
    """
    from steps import ranks, resuming

    while True:
        trainer = build(parts)
        at = ranks.agreed(trainer.checkpoints.newest() if ranks.first() else None)
        if at and not at.exists():
            raise InputError(f"{at} is not on this node: with train.nodes above 1 they share the project's folder")
        if at and (parts := max(parts, resuming.parts(at))) != trainer.parts:
            del trainer         # two of them may be more than the memory holds
            resuming.free_memory()
            trainer = build(parts)
        try:
            trainer.run(at)
            return trainer
        except Exception as error:
            if ranks.world() > 1 and resuming.out_of_memory(error):
                raise InputError(f"rank {ranks.rank()} is out of memory ({error}): raise train.processes, or lower "
                                 "train.batch_size and raise train.gradient_accumulation") from None
            if not resuming.out_of_memory(error):
                raise
            if parts > 1:
                raise InputError(f"out of memory, with each batch computed in {parts} parts too ({error}): lower "
                                 "train.batch_size and raise train.gradient_accumulation") from None
        del trainer
        resuming.free_memory()
        parts = 2
        checkpoint.say("out of memory: once more from the last checkpoint, with each batch computed in two parts; the "
                       "model will say so, for its bits are not those of one whose batches fit")


def agreed(take: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The fingerprint that one rank of each node takes. Raises InputError where the nodes differ in it."""
    from steps import ranks

    mine = take() if int(os.environ.get("LOCAL_RANK", "0")) == 0 or ranks.world() == 1 else None
    of_nodes = [found for found in ranks.everyones(mine) if found]
    for other in of_nodes[1:]:
        if lines := checkpoint.difference(of_nodes[0], other):
            raise InputError("two nodes would not train the same; give them one commit, one data set and the same "
                             "hardware (was: the first node, is: another):\n" + "\n".join(lines))
    return of_nodes[0]


def fingerprint(name: str, settings: Recipe, project: params.Project, data: Path, base_model: Path,
                hardware: Mapping[str, str]) -> dict[str, str]:
    """What the bits of this training depend on; the code is what this process has loaded of it, less what is of other
    recipes alone."""
    home = Path(__file__).parent
    judges = [recipes.get(name).TASK, *(tasks.get(entry.task) for entry in settings.tasks.values())]
    used = {f"steps.recipes.{name}", "steps.recipes", "steps.tasks",
            *(m.__name__ for judge in judges for m in (judge, *vars(judge).values()) if isinstance(m, ModuleType))}
    others = {Path(file) for module, found in list(sys.modules.items()) if module not in used
              and module.startswith(("steps.recipes", "steps.tasks")) and (file := found.__file__)}
    code = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))} - others
    values = {"seed": project.seed, "threads": project.threads, "base_model": settings.base_model,
              "prepare": settings.prepare.model_dump(), "train": settings.train.model_dump()}
    return {
        **{key: str(value) for key, value in params.flatten(values).items()}, **hardware,
        **{path.name: sha256(path) for path in sorted(data.glob("*.arrow")) if path.name != "test.arrow"},
        **{f"base_model/{path.relative_to(base_model).as_posix()}": sha256(path)
           for path in sorted(base_model.rglob("*")) if path.is_file()},
        **{f"steps/{path.relative_to(home).as_posix()}": sha256(path) for path in sorted(code)
           if path.is_relative_to(home)},
        "environment": provenance.environment(),
    }


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
    command.main(alone, writer=launching.writes(sys.argv[1:]))
