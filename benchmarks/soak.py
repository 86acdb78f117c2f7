"""Retrainings on a tiny model with kills of random processes at random moments, and a check of what they left.

python -m benchmarks.soak [--runs 40] [--seed 0] [--killed 0.5]

Every start, kill, end and registration is a line of history.jsonl in the project it works in. At the end: every run
that was asked for has its version, with the weights of a training that nobody killed (0 lost, 0 wrong); nothing was
mended by hand; no process is left; the disk holds what is kept and at most 10 % more.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from steps import command


class Soak:
    def __init__(self, folder: Path, seed: int, killed: float):
        from tests import conftest

        clean = {k: v for k, v in os.environ.items() if not k.startswith(conftest.OUR_VARIABLES)}
        home = folder / "home"
        home.mkdir()
        self.environment = clean | command.QUIET | {
            "HOME": str(home), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}",
            **{f"GIT_{who}_NAME": "Soak" for who in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{who}_EMAIL": "soak@localhost" for who in ("AUTHOR", "COMMITTER")}}
        model = conftest.tiny_model.__wrapped__ if hasattr(conftest.tiny_model, "__wrapped__") else (
            conftest.tiny_model.__pytest_wrapped__.obj)

        class Folders:
            def mktemp(self, name):
                (folder / name).mkdir()
                return folder / name

        self.project = conftest.make_project(folder / "project", model(Folders()), self.environment)
        self.project.edit("checkpoint_seconds", 0)
        self.project.edit("recipes.sts.train.epochs", 20)
        self.random, self.killed = random.Random(seed), killed
        self.history = folder / "history.jsonl"

    def note(self, what: str, **more) -> None:
        with open(self.history, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 2), "what": what, **more}) + "\n")
        print(what, *(f"{k}={v}" for k, v in more.items()), flush=True)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.cwd().startswith(str(self.project.folder)) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def run(self, seed: int) -> None:
        """Asks for a training from a seed, as often as it takes: a run that was killed is started again."""
        self.project.edit("seed", seed)
        for attempt in range(20):
            self.note("start", seed=seed, attempt=attempt)
            process = subprocess.Popen([sys.executable, "-m", "flows.cli", "run", "sts"], cwd=self.project.folder,
                                       env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.STDOUT, start_new_session=True)
            if attempt < 3 and self.random.random() < self.killed:
                self.kill_one(process)
            if process.wait() == 0:
                self.note("end", seed=seed)
                return
        raise SystemExit(f"seed {seed} did not come to its end in 20 attempts")

    def kill_one(self, process: subprocess.Popen) -> None:
        end = time.monotonic() + self.random.uniform(3, 40)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
        if there := self.processes():
            victim = self.random.choice(there)
            with contextlib.suppress(psutil.Error):
                name = " ".join(victim.cmdline())[-60:]
                victim.kill()
                self.note("kill", pid=victim.pid, process=name)

    def check(self, seeds: list[int]) -> list[str]:
        """What is wrong, a line each."""
        wrong = []
        found = self.weights()
        for seed in seeds:
            reference = self.reference(seed)
            if reference not in found:
                wrong.append(f"lost or wrong: seed {seed} has weights {reference[:12]}, no version has them")
        if len(found) != len(seeds):
            wrong.append(f"{len(found)} versions of {len(seeds)} trainings")
        time.sleep(5)
        wrong += [f"left running: {p.pid} {p.cmdline()}" for p in self.processes()]
        left = [p for p in self.project.folder.glob(".evergreen/checkpoints/*/*")]
        wrong += [f"left on the disk: {p}" for p in left]
        kept = size(self.project.folder)
        spare = sum(p.stat().st_size for p in self.project.folder.rglob("*") if p.is_file() and (
            ".partial" in p.name or p.suffix == ".tmp" or ".evergreen/checkpoints" in str(p)))
        self.note("disk", bytes=kept, spare=spare)
        if spare > 0.1 * kept:
            wrong.append(f"{spare} of {kept} bytes are left over")
        return wrong

    def weights(self) -> list[str]:
        code = ("from steps import tracking; found = tracking.client()\n"
                "for v in found.search_model_versions(\"name='sts'\"): print(v.tags['weights_sha256'])")
        return self.project.run(sys.executable, "-c", code).stdout.split()

    def reference(self, seed: int) -> str:
        """The weights of a training of this seed that nobody disturbs."""
        self.project.edit("seed", seed)
        self.project.run(sys.executable, "-m", "steps.train", "sts", "data/prepared/sts", "reference/model",
                         "reference/curves", EVERGREEN_TRACKING="none")
        from steps.provenance import sha256

        return sha256(self.project / "reference/model/model.safetensors")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--killed", type=float, default=0.5, help="the share of starts that are killed")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), options.seed, options.killed)
        seeds = list(range(100, 100 + options.runs))
        for seed in seeds:
            soak.run(seed)
        wrong = soak.check(seeds)
        lines = [json.loads(line)["what"] for line in soak.history.read_text(encoding="utf-8").splitlines()]
    print(f"\n{options.runs} trainings, {lines.count('start')} starts, {lines.count('kill')} kills, "
          f"{time.monotonic() - began:.0f} s: {len(wrong)} wrong, 0 mended by hand")
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
