"""What checkpoints cost a training: with and without them, taking turns, in one process.

python -m benchmarks.checkpoints RECIPE [--repeats 3] [--epochs 1] [--seconds 60]

Run where the recipe's prepared data and base model are (`dvc repro prepare@RECIPE`). Prints the seconds of each side,
the number and size of checkpoints, the ratio, and whether both sides have the same weights.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from steps import checkpoint, command, params
from steps import train as step
from steps.provenance import sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="between checkpoints; else checkpoint_seconds of params.yaml")
    options = parser.parse_args()
    command.quiet()
    os.environ["EVERGREEN_TRACKING"] = "none"
    project = params.load()
    recipe = project.recipe(options.recipe)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": options.epochs})})
    sides = {"none": 1e9, "kept": project.checkpoint_seconds if options.seconds is None else options.seconds}
    commit, sizes = checkpoint.Checkpoints.commit, []

    def counted(self, number, write):
        commit(self, number, write)
        sizes.append(sum(path.stat().st_size for path in (self.folder / f"checkpoint-{number:08}").iterdir()))

    checkpoint.Checkpoints.commit = counted
    ratios = []
    for repeat in range(options.repeats):
        times, weights = {}, set()
        for side in reversed(sides) if repeat % 2 else sides:
            sizes.clear()
            with tempfile.TemporaryDirectory(dir=".evergreen") as room:
                checkpoint.PLACE = Path(room) / "checkpoints"
                began = time.perf_counter()
                step.train(options.recipe, recipe, project.model_copy(update={"checkpoint_seconds": sides[side]}),
                           Path(f"data/prepared/{options.recipe}"), Path(room) / "model", Path(room) / "curves")
                times[side] = time.perf_counter() - began
                weights.add(sha256(Path(room) / "model/model.safetensors"))
                shutil.rmtree(Path(room) / "checkpoints", ignore_errors=True)
        ratios.append(times["kept"] / times["none"])
        print(f"none {times['none']:.1f} s, kept {times['kept']:.1f} s, ratio {ratios[-1]:.3f}, "
              f"{'the same' if len(weights) == 1 else 'OTHER'} weights", flush=True)
    print(f"median ratio {median(ratios):.3f}")
    if sizes:
        print(f"last side with them: {len(sizes)} checkpoints of {max(sizes) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
