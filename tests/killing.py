"""A recipe on a few rows -> a training that ends at chosen steps as a kill ends it, and what it left.

python -m tests.killing KILLS SEED RECIPES...       kills them with -9 at moments drawn from the seed, in the current
folder, each in a process forked from this one, which has imported all and trained nothing; prints JSON
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import datasketch  # noqa: F401
import pandera.pandas  # noqa: F401
import pytest
from transformers import TrainerCallback

from steps import checkpoint, classification, command, embedding, params, prepare, recipes, training  # noqa: F401
from steps import train as step
from steps.provenance import sha256
from tests.project import ROOT, make_tiny_model
from tests.small import few_rows, softmax

PLACE = Path(".evergreen/checkpoints")


class Killed(BaseException):
    """Raised in place of a kill -9: nothing in the product catches it."""


def kill() -> None:
    raise Killed


class Kill(TrainerCallback):
    """Ends the training behind the last callback of a step, before that step's log, evaluation and checkpoint."""

    def __init__(self, steps: set[int], how: Callable[[], None] = kill):
        self.steps, self.how = steps, how

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.steps.remove(state.global_step)
            self.how()


class Training:
    """steps.train on one thread, with a checkpoint at every step, in the current folder."""

    def __init__(self, monkeypatch, recipe: str, settings, seconds: float = 0.0, **project):
        self.patch, self.name, self.settings = monkeypatch, recipe, settings
        self.project = params.load(ROOT / "params.yaml").model_copy(
            update={"threads": 1, "checkpoint_seconds": seconds, **project})
        monkeypatch.setattr(checkpoint, "SHARE", 1e9)
        if not Path("data").exists():
            prepare.prepare(recipes.get(recipe), settings, Path("data"))

    def run(self, model: str = "model") -> dict[str, str]:
        """Trains to the end -> the sha256 of weights and curves."""
        step.train(self.name, self.settings, self.project, Path("data"), Path(model), Path(f"curves-{model}"))
        return {path.name: sha256(path) for path in (
            Path(model) / "model.safetensors", *sorted(Path(f"curves-{model}").iterdir()))}

    def killed_at(self, *steps: int, model: str = "killed") -> None:
        """Trains until it is killed at the first of the steps, again until the second, and so on."""
        left = set(steps)
        for _ in steps:
            self.fault(Kill(left), model)

    def fault(self, callback: TrainerCallback, model: str = "killed") -> None:
        follow = training.follow

        def and_fail(trainer, history):
            follow(trainer, history)
            trainer.add_callback(callback)

        with self.patch.context() as patched:
            patched.setattr(training, "follow", and_fail)
            try:
                self.run(model)
            except Killed:
                return
        raise AssertionError("the training came to its end")

    def checkpoints(self) -> list[Path]:
        return checkpoint.committed(PLACE / self.name)


# A real kill -9 of a real process

IN_A_ROW = 4        # kills of one training, which then ends


class Told(TrainerCallback):
    """Writes each step that was taken to a file."""

    def on_step_end(self, args, state, control, **kwargs):
        with open("steps", "a") as file:
            file.write(f"{state.global_step}\n")


def forked(body: Callable[[], None]) -> int:
    """The process that runs body() and then ends with 0."""
    if child := os.fork():
        return child
    code = 1
    try:
        body()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def waited(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(recipe: str, kills: int, seed: int) -> dict:
    """How many kills hit, the weights and curves of every training that then came to its end and of one that nobody
    killed, and by how many steps each kill put it back. As under DVC, the checkpoints go once the end is on record."""
    name = "nli" if recipe == "softmax" else recipe
    settings = few_rows(params.load(ROOT / "params.yaml").recipe(name), name, Path("../tiny").absolute(),
                        epochs=2 if recipe == "tsdae" else 8, patience=99)
    settings = softmax(settings) if recipe == "softmax" else settings
    patch = pytest.MonkeyPatch()
    patch.setenv(checkpoint.DRIVEN, f"train@{name}")

    def train() -> None:
        follow = training.follow
        patch.setattr(training, "follow", lambda *given: (follow(*given), given[0].add_callback(Told())))
        Path("ended").write_text(json.dumps(Training(patch, name, settings).run()), encoding="utf-8")

    def ended() -> dict:
        shutil.rmtree(PLACE / name)
        Path("steps").unlink()
        return json.loads(Path("ended").read_text(encoding="utf-8"))

    assert waited(forked(lambda: Training(patch, name, settings))) == 0     # prepares the data
    began = time.monotonic()
    assert waited(forked(train)) == 0
    lasts, expected = time.monotonic() - began, ended()
    draw, hit, in_a_row, lost, results = random.Random(f"{seed} {recipe}"), 0, 0, [], []
    while hit < kills or in_a_row:
        child = forked(train)
        if hit < kills and in_a_row < IN_A_ROW:
            time.sleep(draw.uniform(0, lasts))
            os.kill(child, signal.SIGKILL)
        if waited(child) == -signal.SIGKILL:
            hit, in_a_row = hit + 1, in_a_row + 1
            taken = int(Path("steps").read_text().split()[-1]) if Path("steps").exists() else 0
            kept = checkpoint.committed(PLACE / name)
            lost.append(taken - int(kept[-1].name[-8:]) if kept else taken)
        else:
            results.append(ended())
            in_a_row = 0
    return {"kills": hit, "expected": expected, "results": results, "lost": lost}


def main(kills: str, seed: str, *names: str) -> None:
    assert waited(forked(lambda: make_tiny_model(Path("tiny")))) == 0
    said = {}
    for name in names:
        Path(name).mkdir()
        os.chdir(name)
        said[name] = killed(name, int(kills), int(seed))
        os.chdir("..")
        print(name, said[name]["lost"], file=sys.stderr, flush=True)
    print(json.dumps(said))


if __name__ == "__main__":
    command.quiet()
    main(*sys.argv[1:])
