"""What checkpoints cost a training: with and without them, taking turns, in one process.

python -m benchmarks.checkpoints RECIPE [--repeats 3] [--epochs 1] [--seconds 60]

Run where the recipe's prepared data and base model are (`dvc repro prepare@RECIPE`). Prints the wall and CPU seconds of
each side and their ratios, what saving itself took, the number and size of checkpoints, and whether both sides have the
same weights.
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
    commit, sizes, saving = checkpoint.Checkpoints.commit, [], []

    def counted(self, number, write):
        began = time.perf_counter()
        commit(self, number, write)
        saving.append(time.perf_counter() - began)
        sizes.append(sum(path.stat().st_size for path in (self.folder / f"checkpoint-{number:08}").iterdir()))

    checkpoint.Checkpoints.commit = counted
    ratios, of_cpu = [], []
    for repeat in range(options.repeats):
        times, worked, weights = {}, {}, set()
        for side in reversed(sides) if repeat % 2 else sides:
            sizes.clear()
            saving.clear()
            with tempfile.TemporaryDirectory(dir=".evergreen") as room:
                checkpoint.PLACE = Path(room) / "checkpoints"
                began, cpu = time.perf_counter(), time.process_time()
                step.train(options.recipe, recipe, project.model_copy(update={"checkpoint_seconds": sides[side]}),
                           Path(f"data/prepared/{options.recipe}"), Path(room) / "model", Path(room) / "curves")
                times[side], worked[side] = time.perf_counter() - began, time.process_time() - cpu
                weights.add(sha256(Path(room) / "model/model.safetensors"))
                shutil.rmtree(Path(room) / "checkpoints", ignore_errors=True)
            if sizes:
                print(f"{len(sizes)} checkpoints of {max(sizes) / 1e6:.0f} MB, saved in {sum(saving):.1f} s, "
                      f"{sum(saving) / times[side]:.1%} of the training", flush=True)
        ratios.append(times["kept"] / times["none"])
        of_cpu.append(worked["kept"] / worked["none"])
        print(f"none {times['none']:.1f} s, kept {times['kept']:.1f} s, ratio {ratios[-1]:.3f}; of CPU seconds "
              f"{worked['none']:.1f}, {worked['kept']:.1f}, {of_cpu[-1]:.3f}; "
              f"{'the same' if len(weights) == 1 else 'OTHER'} weights", flush=True)
    print(f"median ratio {median(ratios):.3f}, of CPU seconds {median(of_cpu):.3f}")


if __name__ == "__main__":
    main()
