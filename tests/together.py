"""Trainings by one process and by two ranks, forked from one that imported all -> what each saw and computed.

python -m tests.together BASE_MODEL CASES       CASES is JSON: {folder: [recipe, settings of train, rows, ...]}
Of a case with further numbers, two ranks are killed at those steps and continue; else an epoch is compared.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from steps import checkpoint, classification, embedding, params, prepare, ranks, recipes, training
from steps import train as step
from steps.provenance import sha256
from tests.killing import Kill, forked, waited
from tests.project import ROOT
from tests.small import few_rows

KINDS = {"embedding": embedding, "classification": classification}


def together(count: int, body: Callable[[], None], status: int = 0) -> None:
    """Runs the body in so many ranks, which end so; of one, in a process that is none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def one(**environment: str) -> None:
        os.environ |= environment
        torch.set_num_threads(1)
        if environment:
            ranks.join()
        body()

    places = [{}] if count == 1 else [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"} for rank in range(count)]
    children = [forked(lambda place=place: one(**place)) for place in places]
    statuses = [waited(child) for child in children]
    assert statuses == [status] * count, statuses


def epoch(name: str, settings, out: Path) -> None:
    """Trains -> of each batch the rows that are here, of each step the gradient that is used, and the curves."""
    trainer, history = KINDS[settings.kind].build_trainer(
        recipes.get(name), settings, 42, Path("data"), Path(settings.base_model), Path("scratch"), lambda *_: None)
    trainer.args.logging_steps = 1
    rows, seen, gradients, clip = [str(row) for row in trainer.train_dataset], [], [], trainer._clip_grad_norm
    collate = type(trainer.data_collator).__call__

    class Noting(type(trainer.data_collator)):
        def __call__(self, batch):
            seen.append([rows.index(str(row)) for row in batch if str(row) in rows])
            return collate(self, batch)

    def note(model):
        norm = clip(model)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.trained().parameters() if p.grad is not None]))
        return norm

    trainer.data_collator.__class__, trainer._clip_grad_norm = Noting, note
    trainer.run(None)
    np.savez(out, gradients=torch.stack(gradients).numpy(), seen=json.dumps([batch for batch in seen if batch]),
             losses=[row["loss"] for row in history.loss], curves=json.dumps(history.epochs))


def killed_and_not(name: str, settings, kills: list[int]) -> dict[str, list[str]]:
    """{training: the sha256 of its weights and curves}, of two ranks that nobody touched and two that were killed."""
    project = params.load(ROOT / "params.yaml").model_copy(update={"threads": 1, "checkpoint_seconds": 0.0})
    checkpoint.SHARE, follow, found = 1e9, training.follow, {}

    def train(model: str, kill_at: int | None = None) -> None:
        def and_kill(trainer, history):
            follow(trainer, history)
            trainer.add_callback(Kill({kill_at}, lambda: os.kill(os.getpid(), signal.SIGKILL)))

        training.follow = and_kill
        step.train(name, settings, project, Path("data"), Path(model), Path(f"curves-{model}"))

    for model, steps in (("whole", []), ("killed", kills)):
        for kill_at in steps:
            together(2, lambda model=model, kill_at=kill_at: train(model, kill_at), -signal.SIGKILL)
            assert checkpoint.committed(Path(".evergreen/checkpoints") / name)
        together(2, lambda model=model: train(model))
        curves = sorted(Path(f"curves-{model}").iterdir())
        found[model] = [sha256(path) for path in (Path(model) / "model.safetensors", *curves)]
    return found


def main(base_model: str, cases: dict[str, list]) -> None:
    shipped, home = params.load(ROOT / "params.yaml").recipes, Path.cwd()
    for folder, (name, train, rows, *kills) in cases.items():
        (home / folder).mkdir()
        os.chdir(home / folder)
        settings = few_rows(shipped[name], name, Path(base_model), **train)
        fewer = {"limit": rows} | ({"held_out": 0.1} if name in ("tsdae", "mlm") else {})
        settings = settings.model_copy(update={"prepare": settings.prepare.model_copy(update=fewer)})

        def get_ready(name=name, settings=settings) -> None:
            prepare.prepare(recipes.get(name), settings, Path("data"))

        together(1, get_ready)
        if kills:
            Path("sha256.json").write_text(json.dumps(killed_and_not(name, settings, kills)), encoding="utf-8")
        for count in () if kills else (1, 2):
            together(count, lambda name=name, settings=settings, count=count: epoch(
                name, settings, Path(f"{count}-{ranks.rank()}.npz")))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
