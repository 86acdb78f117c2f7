"""A recipe on a few rows -> a training that ends at chosen steps as a kill ends it, and what it left."""

from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback

from steps import checkpoint, params, prepare, recipes, training
from steps import train as step
from steps.provenance import sha256
from tests.conftest import ROOT

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
