"""What Prefect, DVC and MLflow add to a run: whole processes of both sides, taking turns.

python -m benchmarks.overhead [--repeats 3] [--epochs 1]

Each repeat runs, in a fresh copy of the project at HEAD, `evergreen run sts` on one side and on the other the same work
as bare processes without tracking: the steps, and the measurement on which the verdict rests. The databases of MLflow
and Prefect, which are made once for a project, are there before. Then come a run with nothing to do, and
`evergreen --help`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from ruamel.yaml import YAML

from flows.settings import PREFECT
from steps import contest, params, seen

STEPS = (
    ("steps.download", "dataset", "appliances", "data/raw/appliances"),
    ("steps.download", "model", "all-MiniLM-L6-v2", "models/base/all-MiniLM-L6-v2"),
    ("steps.prepare", "sts", "data/prepared/sts"),
    ("steps.train", "sts", "data/prepared/sts", "models/sts", "evaluation/sts/training"),
    ("steps.evaluate", "sts", "data/prepared/sts", "models/sts", "evaluation/sts/test"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        overheads, idle, helps = [], [], []
        for repeat in range(options.repeats):
            times = {}
            for side in ("bare", "run") if repeat % 2 else ("run", "bare"):
                project = clone(Path(room) / f"{side}{repeat}", options.epochs)
                times[side] = bare(project) if side == "bare" else run(project, "run", "sts")
                if side == "run":
                    idle.append(run(project, "run", "sts"))
                    helps.append(run(project, "--help"))
                shutil.rmtree(project)
            overheads.append(times["run"] - times["bare"])
            print(f"evergreen run {times['run']:.1f} s, bare steps {times['bare']:.1f} s, "
                  f"difference {overheads[-1]:.1f} s, ratio {times['run'] / times['bare']:.2f}; "
                  f"nothing to do {idle[-1]:.1f} s; --help {helps[-1]:.2f} s", flush=True)
    print(f"medians: overhead {median(overheads):.1f} s, nothing to do {median(idle):.1f} s, "
          f"--help {median(helps):.2f} s")


def clone(folder: Path, epochs: int) -> Path:
    subprocess.run(["git", "clone", "--quiet", ".", str(folder)], check=True)
    file = YAML()
    values = file.load(folder / "params.yaml")
    values["recipes"]["sts"]["train"]["epochs"] = epochs
    file.dump(values, folder / "params.yaml")
    timed(folder, [sys.executable, "-c", "from steps import tracking; tracking.client()"], environment())
    home = PREFECT | {"PREFECT_HOME": str(folder / ".evergreen/prefect")}
    timed(folder, [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"], environment() | home)
    return folder


def verdict() -> None:
    """Scores the new model and its base as the verdict on a first model does."""
    project = params.load()
    new, base = (contest.Contestant(folder, None, seen.read(folder)) for folder in (
        Path("models/sts"), Path("models/base/all-MiniLM-L6-v2")))
    contest.measure("sts", project.recipe("sts"), project, Path("data/prepared/sts"), [new], base, True)


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(project: Path, *arguments: str) -> float:
    return timed(project, [sys.executable, "-m", "flows.cli", *arguments], environment())


def bare(project: Path) -> float:
    off = environment() | {"EVERGREEN_TRACKING": "none"}
    steps = [["-m", *step] for step in STEPS] + [["-c", "from benchmarks import overhead; overhead.verdict()"]]
    return sum(timed(project, [sys.executable, *step], off) for step in steps)


def timed(project: Path, command: list[str], variables: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=project, env=variables, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
