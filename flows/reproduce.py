"""A registered version -> the same model built again in a scratch folder: equal, or the first difference.

The folder is a clone at the version's commit with the params.yaml and dvc.lock that its run kept; it shares DVC's
cache, from which data, base models and, without --force, results come back.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from flows import graph, processes
from steps import params, provenance, registry, tracking
from steps.schema import InputError

PLACE = Path(".evergreen/reproduce")
SOURCES = ("import_", "download_")      # stages whose outputs are taken from the cache as they were then


def run(name: str, force: bool = False) -> int:
    """Builds the version again and says whether its weights are the same. 0 where they are, else 1."""
    found = tracking.client()
    recipe, number = registry.pick(found, name)
    version = found.get_model_version(recipe, str(number))
    tags, who = version.tags, f"{recipe}@{number}"
    if "git_commit" not in tags or "weights_sha256" not in tags:
        raise InputError(f"{who} does not say what made it: it was not registered by Evergreen")
    kept = {file: tracking.kept(found, version.run_id, f"evaluation/{file}") for file in ("params.yaml", "dvc.lock")}
    if lost := [file for file, path in kept.items() if path is None]:
        raise InputError(f"run {version.run_id} of {who} keeps no {' and no '.join(lost)}; without it the model cannot "
                         "be built again")
    if provenance.sha256(kept["dvc.lock"]) != tags.get("dvc_lock_sha256"):
        print(f"note: the run keeps the dvc.lock of a later version of the same weights, not that of {who}")
    if tags["git_commit"].endswith("+changes"):
        print(f"note: {who} was made with changes that were not committed and cannot be had back; this is its commit "
              "without them, with the params.yaml that it had")
    folder = clone(who, tags["git_commit"])
    for file, path in kept.items():
        shutil.copy(path, folder / file)
    then = params.read(folder / "dvc.lock")["stages"]
    stages = order(then, f"evaluate@{recipe}")
    python = environment(folder)
    restore(stages, folder)
    for line in graph.discard_damaged(stages, folder):
        print(line, flush=True)
    for stage in stages:
        if not stage.startswith(SOURCES) or missing(then[stage], folder):
            anew = ["--force"] if force and stage in (f"train@{recipe}", f"evaluate@{recipe}") else []
            outcome = graph.reproduce(stage, lambda line, s=stage: print(f"{s} | {line}", flush=True), folder,
                                      options=anew, python=python, EVERGREEN_TRACKING="none")
            print(f"{stage}: {outcome}", flush=True)
    made = provenance.sha256(folder / "models" / recipe / "model.safetensors")
    if made == tags["weights_sha256"]:
        test = provenance.folder_sha256(folder / "evaluation" / recipe / "test")
        same = "the evaluation too" if test == tags.get("evaluation_sha256") else "the evaluation differs"
        print(f"equal: {who} has weights sha256 {made}, and so has what was built in {folder}; {same}")
        return 0
    print(f"different: {who} has weights sha256 {tags['weights_sha256']}, {folder} {made}")
    now = params.read(folder / "dvc.lock")["stages"]
    print("\n".join(difference(then, now, stages, tracking.facts(found, version.run_id)[1], tags["git_commit"])))
    return 1


def clone(who: str, commit: str) -> Path:
    """The code of a commit in a repository of its own that shares DVC's cache. What lay there before is removed."""
    folder, commit = PLACE / who, commit.removesuffix("+changes")
    if git("cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise InputError(f"{who} was made at commit {commit}, which this repository does not have; fetch it with git")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    cache = str(Path(".dvc/cache").absolute())
    for done in (git("clone", "--quiet", "--shared", "--no-checkout", ".", str(folder)),
                 git("-C", str(folder), "checkout", "--quiet", "--detach", commit),
                 subprocess.run([*processes.COMMAND, "config", "--local", "cache.dir", cache], cwd=folder,
                                capture_output=True, text=True, check=False)):
        if done.returncode:
            raise InputError(f"{folder} cannot be made: {done.stderr.strip()}")
    return folder


def git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)


def order(stages: Mapping[str, dict], target: str) -> list[str]:
    """The target and all it needs by dvc.lock, each after what it needs."""
    if target not in stages:
        raise InputError(f"the dvc.lock that was kept knows no {target}")
    made = {out["path"]: name for name, stage in stages.items() for out in stage.get("outs", ())}
    found: list[str] = []

    def visit(name: str) -> None:
        for dep in stages[name].get("deps", ()):
            if (upstream := made.get(dep["path"])) and upstream not in found:
                visit(upstream)
        found.append(name)
    visit(target)
    return found


def environment(folder: Path) -> str:
    """The Python to build with: this one, or where the commit pins another environment one made for it."""
    if all((folder / lock).exists() and provenance.sha256(folder / lock) == provenance.sha256(lock)
           for lock in provenance.LOCKS):
        return sys.executable
    print(f"the commit pins another environment; making it in {folder}/.venv (a few minutes)", flush=True)
    done = subprocess.run(["make", "setup"], cwd=folder, check=False)
    python = folder.absolute() / ".venv/bin/python"
    if done.returncode or not python.exists():
        raise InputError(f"the environment of that commit cannot be made; see what `make setup` says in {folder}")
    return str(python)


def restore(stages: list[str], folder: Path) -> None:
    """Brings back from the cache what it has of the stages' outputs; the others are made."""
    subprocess.run([*processes.COMMAND, "checkout", "--quiet", "--force", *stages], cwd=folder, capture_output=True,
                   check=False)


def missing(stage: dict, folder: Path) -> bool:
    return any(not (folder / out["path"]).exists() for out in stage.get("outs", ()))


def difference(then: Mapping[str, dict], now: Mapping[str, dict], stages: list[str], tags: Mapping[str, str],
               commit: str) -> list[str]:
    """The first stage whose record differs, in what, and the likely cause."""
    for stage in stages:
        inputs = [*changed(then[stage], now[stage], "deps"), *changed_params(then[stage], now[stage])]
        if inputs or (outputs := [*changed(then[stage], now[stage], "outs")]):
            return [f"first difference, in {stage}:", *(f"  {line}" for line in inputs or outputs),
                    f"likely cause: {cause(inputs, tags, commit)}"]
    return ["dvc.lock is the same in every stage, so it is not that of these weights: the run was changed afterwards"]


def changed(then: dict, now: dict, what: str) -> Iterator[str]:
    before, after = ({e["path"]: e.get("md5") for e in record.get(what, ())} for record in (then, now))
    for path in sorted({*before, *after}):
        if before.get(path) != after.get(path):
            yield f"{path}: md5 {before.get(path)} then, {after.get(path)} now"


def changed_params(then: dict, now: dict) -> Iterator[str]:
    before, after = (params.flatten(record.get("params", {})) for record in (then, now))
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            yield f"{key}: {before.get(key)} then, {after.get(key)} now"


def cause(inputs: list[str], tags: Mapping[str, str], commit: str) -> str:
    """Why the same version comes out otherwise, from what differs first."""
    if any(line.startswith("requirements.") for line in inputs):
        return "the environment: the pinned packages are not those of then"
    if any(line.startswith(("steps/", "flows/")) for line in inputs):
        return ("the code: the version was made with changes that were not committed, and they cannot be had back"
                if commit.endswith("+changes") else "the code: the files are not those of the commit")
    if inputs and not any("md5" in line for line in inputs):
        return "the parameters: params.yaml is not the one that was kept"
    if inputs:
        return "the data: what the stage read is not what it read then"
    from steps import training

    then = {key: tags.get(key, "not known") for key in ("device", "precision")}
    here = training.hardware("auto")
    hardware = f"{then['device']} in {then['precision']} then, {here['device']} here"
    return (f"the hardware: {hardware}" if then["device"] != here["device"] else
            f"threads or the processor's kind: all inputs are the same ({hardware}); look whether something else sets "
            "the number of threads")
