"""A recipe and a number of seeds -> the same training from each, side by side in MLflow with mean and spread.

Every further seed runs in a copy of the project below .evergreen/seeds that shares DVC's cache, so what the seed does
not touch (data, base model, prepared rows) is restored there and a seed that was run before is not trained again.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from statistics import mean, stdev

from flows import graph, processes
from steps import params, provenance, recipes, register, tracking
from steps.schema import InputError

PLACE = Path(".evergreen/seeds")


def run(recipe: str, count: int) -> str:
    """Trains the recipe from `count` seeds, the project's own and those after it; returns a table with mean ± sd.

    The project's own must be up to date in the workspace. Nothing but it is registered.
    """
    project = params.load()
    folders, stages = {project.seed: Path()}, graph.plan([f"evaluate@{recipe}"])
    for seed in range(project.seed + 1, project.seed + count):
        folders[seed] = copy(seed)
        for stage in stages:
            graph.reproduce(stage.name, lambda line, seed=seed: print(f"seed {seed} | {line}", flush=True),
                            folders[seed])
    at = register.folders(recipe)
    found = {seed: json.loads((folder / at["test"] / "metrics.json").read_text(encoding="utf-8"))
             for seed, folder in folders.items()}
    children = {seed: register.run_of(recipe, folder, params.load(folder / params.PARAMS))
                for seed, folder in folders.items()}
    summary = spread(list(found.values()))
    parent = tracking.parent_run(recipe, list(found), summary, children,
                                 {seed: register.flat_metrics(metrics) for seed, metrics in found.items()})
    metric = recipes.get(recipe).METRIC
    return "\n".join([f"{recipe}: {metric} on test, {count} seeds",
                      *(f"  seed {seed:<8}{metrics[metric]['model']:>8.4f}   gain {metrics[metric]['gain']:.4f}"
                        for seed, metrics in found.items()),
                      *(f"  {name:<13}{summary[f'{key}.mean']:>8.4f} ± {summary[f'{key}.sd']:.4f}"
                        for name, key in (("model", f"test.{metric}.model"), ("gain", f"test.{metric}.gain"))),
                      f"  parent run   {parent}"])


def trained(recipe: str) -> list[Path]:
    """The copies that trained the recipe from another seed on what the workspace's own was trained on."""
    def lock(folder: Path) -> dict | None:
        entry = params.read(folder / "dvc.lock").get("stages", {}).get(f"train@{recipe}")
        if entry is None or weights(folder, recipe) is None:
            return None
        numbers = {k: v for k, v in entry["params"]["params.yaml"].items() if k != "seed"}
        return {"deps": {dep["path"]: dep["md5"] for dep in entry["deps"]}, "params": numbers}

    if not Path("dvc.lock").exists() or (own := lock(Path())) is None:
        return []
    copies = sorted(path.parent for path in PLACE.glob("*/dvc.lock"))
    return [folder for folder in copies if folder.name != str(params.load().seed) and lock(folder) == own]


def weights(folder: Path, recipe: str) -> str | None:
    """The sha256 of the recipe's weights in a copy of the project."""
    path = folder / register.folders(recipe)["model"] / "model.safetensors"
    return provenance.sha256(path) if path.exists() else None


def spread(found: list[dict]) -> dict[str, float]:
    """{"test.x.mean": ..., "test.x.sd": ...} of every test metric; sd is that of a sample (n - 1)."""
    flat = [register.flat_metrics(metrics) for metrics in found]
    values = {name: [f[name] for f in flat] for name in flat[0]}
    return {f"{name}.mean": mean(v) for name, v in values.items()} | {
        f"{name}.sd": stdev(v) for name, v in values.items()}


def copy(seed: int) -> Path:
    """The project's files as they are now with another seed, in a git repository of their own."""
    folder = PLACE / str(seed)
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, check=True)
    files = [Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name]
    kept = {folder / name for name in ("models", "data", "evaluation", ".evergreen")}     # a run may go on in there
    for old in folder.iterdir() if folder.exists() else ():
        if old not in kept:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for file in files:
        if file.is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, folder / file)
    for command in (["git", "init", "--quiet"],
                    [*processes.COMMAND, "config", "--local", "cache.dir", str(Path(".dvc/cache").absolute())]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"{folder} cannot be made a project of its own: {done.stderr.strip()}")
    change(folder, seed)
    return folder


def change(folder: Path, seed: int) -> None:
    """Writes the seed into the copy's params.yaml, and in full the paths of what was not copied with it."""
    from ruamel.yaml import YAML

    file, path = YAML(), folder / params.PARAMS
    values = file.load(path.read_text(encoding="utf-8"))
    values["seed"] = seed
    for what in ("datasets", "base_models"):
        for entry in values[what]["local"].values():
            if not (folder / entry["path"]).exists() or ".." in Path(entry["path"]).parts:
                entry["path"] = str(Path(entry["path"]).absolute())
    with open(path, "w", encoding="utf-8") as out:
        file.dump(values, out)

