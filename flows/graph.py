"""dvc.yaml -> the stages in order, which are stale, and one of them run; the only import of dvc."""

import contextlib
import hashlib
import json
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows import processes
from flows.processes import StageFailed, StageKilled
from steps import checkpoint, params, tracking
from steps.schema import InputError

LOCK, RWLOCK = Path("dvc.lock"), Path(".dvc/tmp/rwlock")
AWAY = (5.0, 15.0, 45.0)        # seconds between tries to reach DVC's remote
NOT_KEPT = "ERROR: failed to transfer"
_cache = threading.Lock()       # one looks through DVC's cache at a time: siblings share what they need


@dataclass(frozen=True)
class Stage:
    name: str                   # train@sts
    upstream: tuple[str, ...]
    work_pool: str | None       # meta.work_pool: where it wants to run


def _repo(folder: Path = Path()):
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    if not (folder / ".git").exists():
        raise InputError("this folder is not a git repository, and DVC versions data beside code in one; "
                         "make it one with: git init && git add -A && git commit -m 'Start'")
    if not (folder / "dvc.yaml").exists():
        raise InputError("dvc.yaml is not here; run this in the project's folder")
    try:
        return Repo(str(folder), _wait_for_lock=True)
    except (DvcException, SCMError) as error:
        raise InputError(f"DVC cannot read this project: {error}") from None


def _named(repo, names: Iterable[str]) -> list:
    """The stages of these names: asked for each name, DVC would resolve all of dvc.yaml anew, and of this folder."""
    known = {f"{stage.path_in_repo}:{getattr(stage, 'name', None)}": stage for stage in repo.index.stages}
    found = {name: known.get(name if ":" in name else f"dvc.yaml:{name}") for name in names}
    return [stage for name, it in found.items() for stage in ([it] if it else repo.stage.collect(name))]


def _work_pool(stage) -> str | None:
    return (stage.meta or {}).get("work_pool")


def plan(targets: Iterable[str]) -> list[Stage]:
    """The targets and all they need, in the order in which `dvc repro` would run them.

    Raises InputError where dvc.yaml does not resolve or a file that no stage makes is not there.
    """
    from dvc.exceptions import DvcException
    from dvc.repo.reproduce import plan_repro

    repo = _repo()
    try:
        graph = repo.index.graph
        wanted = _named(repo, targets)
    except DvcException as error:
        raise InputError(f"dvc.yaml does not resolve: {error}") from None
    stages = plan_repro(graph, wanted)
    made = {out.fs_path for stage in repo.index.stages for out in stage.outs}
    for stage in stages:
        for dep in stage.deps:
            if dep.fs_path not in made and not dep.exists:
                raise InputError(f"{stage.addressing} needs {dep}, which does not exist; "
                                 "put it there or correct its path in params.yaml")
    processes.start_anew()
    return [Stage(s.addressing, tuple(u.addressing for u in graph.successors(s)), _work_pool(s))
            for s in stages]


def work_pools() -> set[str]:
    """Those that dvc.yaml names for its stages."""
    return {pool for stage in _repo().index.stages if (pool := _work_pool(stage))}


def stale(names: list[str]) -> list[str]:
    """Those of the stages whose own inputs or outputs differ from dvc.lock; what follows them may have to run too."""
    from dvc.exceptions import DvcException

    try:
        repo = _repo()
        with repo.lock:
            return [name for stage in _named(repo, names) for name in stage.status(check_updates=True)]
    except DvcException as error:
        raise InputError(f"DVC cannot tell what is stale: {error}") from None


def reproduce(name: str, on_line: Callable[[str], None], folder: Path | None = None, *, options: Iterable[str] = (),
              python: str = sys.executable, **variables: str) -> str:
    """Lets DVC bring one stage up to date; its upstream must be so already. Returns ran, restored or unchanged.

    `folder` is another copy of the project, which may need another `python` and environment `variables`; `options` are
    those of `dvc repro`.

    A stage that was killed from outside has one more try, which continues from its checkpoint; where the kernel killed
    something for want of memory meanwhile, a training of one process has its batches computed in two parts. What was
    restored is compared with its digests before anyone reads it, and made anew where the cache was damaged. Checkpoints
    go when DVC has what was trained. Raises InputError when the step refused its input, StageFailed when it failed or
    was stopped.
    """
    def once() -> str:
        return _reproduce(name, on_line, folder, options, python, variables)

    kills = memory_kills()
    try:
        outcome = once()
    except StageKilled as error:
        if memory_kills() > kills and name.startswith("train@"):
            variables |= {checkpoint.PARTS: "2"}
            on_line(f"{error}, and the kernel did kill for want of it; once more, and where one process trains, with "
                    "batches computed in two parts")
        else:
            on_line(f"{error}; once more")
        outcome = once()
    if outcome == "restored" and (damaged := discard_damaged([name], folder)):
        for line in damaged:
            on_line(line)
        outcome = once()
        if left := discard_damaged([name], folder):
            raise StageFailed("\n".join(left))
    kind, _, recipe = name.partition("@")
    if kind in ("train", "evaluate"):
        place = (folder or Path()) / checkpoint.PLACE / recipe
        if outcome != "ran" and checkpoint.committed(place):
            on_line(f"{name} is {outcome}; the checkpoints in {place}, of a training that did not end, are removed")
        shutil.rmtree(place, ignore_errors=True)
    return outcome


def memory_kills() -> int:
    """How many processes of this machine the kernel has killed for want of memory, a container's limit included."""
    try:
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text(encoding="utf-8").splitlines())
    except OSError:     # not Linux
        return 0
    return int(counts.get("oom_kill", 0))


def discard_damaged(names: Iterable[str], folder: Path | None = None) -> list[str]:
    """Removes the stages' outputs whose objects in DVC's cache are not what their names say, which DVC trusts unread.

    An object whose file in the workspace is right is written anew from that. Returns a line for each of the others; the
    stage is stale then, and runs again.
    """
    with _cache:
        return _discard_damaged(names, folder or Path())


def _discard_damaged(names: Iterable[str], folder: Path) -> list[str]:
    from dvc.exceptions import DvcException

    repo = _repo(folder)
    try:
        outs = [out for stage in _named(repo, names) for out in stage.outs]
    except DvcException as error:
        raise InputError(f"dvc.yaml of {folder} does not resolve: {error}") from None
    said = []
    for out in outs:
        if not (out.hash_info and out.use_cache):
            continue
        whole, here = out.hash_info.value, Path(out.fs_path)
        files = {whole: here}
        if whole.endswith(".dir"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                listed = json.loads(Path(repo.cache.local.oid_to_path(whole)).read_text(encoding="utf-8"))
                files |= {entry["md5"]: here / entry["relpath"] for entry in listed}
        kept = {digest: Path(repo.cache.local.oid_to_path(digest)) for digest in files}
        rotten = [digest for digest, path in kept.items() if path.exists() and md5(path) != digest.removesuffix(".dir")]
        bad = [digest for digest in rotten if not (files[digest].is_file() and md5(files[digest]) == digest)]
        for digest in set(rotten) - set(bad):
            _write_anew(kept[digest], files[digest])
        if bad:
            gone = sorted({*bad, whole})        # a folder's list too: where that is there, DVC takes its files to be
            said.append(f"{out.def_path}: damaged in DVC's cache; removed, to be made anew: "
                        + ", ".join(str(kept[digest]) for digest in gone))
            for digest in gone:
                kept[digest].unlink(missing_ok=True)
            shutil.rmtree(here) if here.is_dir() else here.unlink(missing_ok=True)
    return said


def _write_anew(kept: Path, file: Path) -> None:
    """An object of the cache from a file that is what it should be."""
    partial = kept.with_name(f".{kept.name}.tmp")       # which `mend` removes where a kill leaves it
    shutil.copyfile(file, partial)
    partial.chmod(0o444)
    partial.replace(kept)


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _reproduce(name: str, on_line: Callable[[str], None], folder: Path | None, options: Iterable[str], python: str,
               variables: Mapping[str, str]) -> str:
    variables = ({"MLFLOW_TRACKING_URI": tracking.uri()} if folder else {}) | variables
    command = ["repro", "--single-item", *options, name]
    code, outcome, said = processes.run(name, command, on_line, folder, python, variables)
    if code == 0:
        if lost := [line for line in said if line.startswith(NOT_KEPT)]:      # DVC records it all the same
            if not folder:
                forget(name)
                mend()
            raise StageFailed(f"{name} is done, but DVC's cache could not take its outputs: {lost[0]}; free some, then "
                              "run the same command again")
        return outcome
    errors = [s.removeprefix("error: ") for s in said if s.startswith("error: ")]
    if errors and re.search(r"exited with 2$", "\n".join(said), re.MULTILINE):
        raise InputError("\n".join(errors))
    if code == -signal.SIGKILL or re.search(r"exited with (-9|137)$", "\n".join(said), re.MULTILINE):
        raise StageKilled(f"{name} was killed by something outside, as happens where memory is short")
    raise StageFailed(f"{name} failed:\n" + "\n".join(said[-15:]))


def transfer(how: str, names: Iterable[str], on_line: Callable[[str], None]) -> None:
    """Lets the stages' outputs, and what DVC remembers of runs, go to the DVC remote (push) or come from it (pull).

    Tries again while the remote may only be away for a moment.
    """
    names = list(names)
    options = {"push": ["--run-cache"], "pull": ["--force"]}[how]
    for wait in (*AWAY, None) if names else ():
        code, _, said = processes.run(f"dvc {how}", [how, *options, *names], on_line)
        if not code:
            return
        if wait is None or processes.pause(wait):
            raise StageFailed(f"dvc {how} {' '.join(names)} failed:\n" + "\n".join(said[-5:]))
        on_line(f"dvc {how} failed; once more after {wait:g} s")


def forget(name: str) -> None:
    """Takes a stage out of dvc.lock, so that it runs again."""
    _change_lock(lambda stages: {other: section for other, section in stages.items() if other != name})


@contextlib.contextmanager
def lock_in_order(plan: list[Stage]) -> Iterator[None]:
    """Leaves dvc.lock's new entries in the order of the plan, as `dvc repro` does, whichever sibling is done first.

    Stages that still run when something goes wrong are ended first.
    """
    known = list(params.read(LOCK)["stages"]) if LOCK.exists() else []
    try:
        yield
    except BaseException:
        processes.stop()
        raise
    finally:
        _change_lock(lambda stages: {name: stages[name] for name in dict.fromkeys(
            [*known, *(s.name for s in plan), *stages]) if name in stages})


def adopt(sections: Mapping[str, dict]) -> None:
    """Takes another clone's records of stages into dvc.lock, so that their outputs can be pulled."""
    _change_lock(lambda stages: stages | sections)


def _change_lock(change: Callable[[dict], dict]) -> None:
    from dvc.utils.serialize import dump_yaml

    with _repo().lock:
        values = params.read(LOCK) if LOCK.exists() else {"schema": "2.0", "stages": {}}
        before, values["stages"] = values["stages"], change(values["stages"])
        if list(values["stages"].items()) != list(before.items()):
            partial = LOCK.with_name(f".{LOCK.name}.partial")
            dump_yaml(str(partial), values)
            partial.replace(LOCK)


def mend() -> None:
    """Removes what a kill -9 left half written of DVC's: files of its cache, its list of who reads and writes what."""
    places = ("files/md5", "files/md5/*", "runs/*/*")
    if left := [path for place in places for path in Path(".dvc/cache").glob(f"{place}/.*.tmp")]:
        with _repo().lock:
            for path in left:
                path.unlink(missing_ok=True)
    try:
        json.loads(RWLOCK.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:
        RWLOCK.unlink()
