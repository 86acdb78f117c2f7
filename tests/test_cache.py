"""DVC's cache: an object that rots, a kill -9 while it is written, a disk that is full; what is used is sound."""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from flows import graph, remote, seeds
from tests.killing import forked, waited
from tests.project import Project, digests
from tests.test_checkpoint import flip, on_a_small_disk


def cached(project: Project, path: Path) -> Path:
    digest = graph.md5(path)
    return project / f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}"


@pytest.mark.fault(11)
def test_a_restored_output_that_rotted_in_the_cache_is_made_anew(copy, inside):
    """Without the check DVC copies the damaged weights and calls them up to date."""
    inside(copy)
    before = digests(copy.folder)
    flip(cached(copy, copy / "models/sts/model.safetensors"))
    shutil.rmtree(copy / "models/sts")
    lines = []
    assert graph.reproduce("train@sts", lines.append) == "ran"
    assert any("models/sts: damaged in DVC's cache" in line for line in lines)
    assert digests(copy.folder) == before
    assert graph.discard_damaged(["train@sts"]) == []


@pytest.mark.fault(11)
def test_a_copy_of_the_project_that_shares_the_cache_restores_nothing_that_rotted(copy, inside):
    """As `run --seeds` and `reproduce` make one."""
    inside(copy)
    flip(cached(copy, copy / "data/prepared/sts/train.arrow"))
    shutil.rmtree(copy / "data/prepared/sts")
    folder, lines = seeds.copy(43), []
    outcomes = {stage.name: graph.reproduce(stage.name, lines.append, folder) for stage in graph.plan(["prepare@sts"])}
    assert outcomes["prepare@sts"] == "ran"
    assert any("data/prepared/sts: damaged in DVC's cache" in line for line in lines)
    assert graph.discard_damaged(["prepare@sts"], folder) == []


@pytest.mark.fault(11)
def test_a_worker_fetches_anew_what_rotted_in_its_cache_and_refuses_what_rotted_on_the_remote(copy, inside, tmp_path):
    inside(copy)
    copy.dvc("remote", "add", "--default", "elsewhere", str(tmp_path / "elsewhere"))
    copy.git("commit", "-qam", "A remote")
    stage = next(stage for stage in graph.plan(["train@sts"]) if stage.name == "train@sts")
    order = remote.order(stage, print)
    kept = cached(copy, copy / "data/prepared/sts/train.arrow")
    flip(kept)
    shutil.rmtree(copy / "data/prepared/sts")
    assert remote.carry_out(**order, on_line=print) == "unchanged"
    assert graph.md5(kept) == kept.parent.name + kept.name
    flip(tmp_path / "elsewhere" / kept.relative_to(copy / ".dvc/cache"))
    kept.unlink()
    shutil.rmtree(copy / "data/prepared/sts")
    with pytest.raises(graph.StageFailed, match=r"(?s)prepared/sts: damaged in DVC's cache.* the DVC remote") as failed:
        remote.carry_out(**order, on_line=print)
    named = [Path(path) for path in str(failed.value).splitlines()[0].partition("anew: ")[2].split(", ")]
    assert len(named) == 2
    copy.dvc("repro", "prepare@sts")
    for path in named:
        (tmp_path / "elsewhere" / path.relative_to(copy / ".dvc/cache")).unlink()
    assert remote.carry_out(**remote.order(stage, print), on_line=print) == "unchanged"


@pytest.mark.fault(11)
def test_a_remote_that_is_away_for_a_moment_is_asked_again(copy, inside, tmp_path, monkeypatch):
    """A file where the remote's folder should be takes nothing."""
    store = tmp_path / "store"
    copy.dvc("remote", "add", "--quiet", "--local", "--default", "store", str(store))
    inside(copy)
    monkeypatch.setattr(graph, "AWAY", (0.0,))

    def back(line: str) -> None:
        if line == "dvc push failed; once more after 0 s":
            store.unlink()

    for there_again in (False, True):
        store.touch()
        if there_again:
            graph.transfer("push", ["train@sts"], back)
        else:
            with pytest.raises(graph.StageFailed, match="dvc push train@sts failed"):
                graph.transfer("push", ["train@sts"], lambda line: None)
    assert list(store.rglob("*.dir"))


def test_an_output_that_rotted_is_not_registered(copy, inside, evergreen):
    inside(copy)
    flip(cached(copy, copy / "models/sts/model.safetensors"))
    shutil.rmtree(copy / "models/sts")
    copy.dvc("checkout", "models/sts")
    done = evergreen("register", "sts")
    assert done.code == 2
    assert "models/sts: damaged in DVC's cache" in done.out
    assert "train@sts, evaluate@sts would have to run again" in done.err


@pytest.mark.fault(11)
def test_a_sound_output_stays_though_its_object_rotted(copy, inside):
    inside(copy)
    before = digests(copy.folder)
    flip(kept := cached(copy, copy / "models/sts/model.safetensors"))
    assert graph.discard_damaged(["train@sts"]) == []
    assert graph.md5(kept) == kept.parent.name + kept.name
    assert digests(copy.folder) == before


def damaged(cache: Path) -> list[str]:
    """Files of the cache that are not what their names say."""
    return [str(path) for path in sorted(cache.glob("??/*"))
            if graph.md5(path) != f"{path.parent.name}{path.name.removesuffix('.dir')}"]


@pytest.mark.fault(10)
def test_a_kill_while_the_cache_is_written_leaves_sound_objects_and_the_next_run_is_right(copy, inside):
    """Killed before the first, the second and the last file of the model has its name in the cache."""
    inside(copy)
    before, cache = digests(copy.folder), copy / ".dvc/cache/files/md5"
    files = [path for path in (copy / "models/sts").rglob("*") if path.is_file()]
    for path in {cached(copy, path) for path in files} & {*cache.glob("??/*")}:
        path.unlink()
    shutil.rmtree(copy / ".dvc/cache/runs")
    graph.forget("train@sts")

    def commit(point: int) -> None:
        from dvc.repo import Repo

        replace, calls, one = os.replace, iter(range(1000)), threading.Lock()

        def killed(source, target, **more):
            with one:       # DVC copies in threads, and no other gets ahead of the kill
                if str(cache) in str(target) and next(calls) == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target, **more)

        os.replace = killed
        Repo(".").commit("train@sts", force=True)

    for point in (0, 1, len(files) // 2):
        assert waited(forked(lambda point=point: commit(point))) == -signal.SIGKILL
        assert all(path.endswith(".tmp") for path in damaged(cache))
    assert damaged(cache) != []
    graph.mend()
    assert damaged(cache) == []
    assert graph.reproduce("train@sts", print) == "ran"
    assert digests(copy.folder) == before
    assert damaged(cache) == []


FULL = """
import os, pathlib, shutil, sys
from flows import graph, processes
from steps import params
cache, room = pathlib.Path(".dvc/cache"), pathlib.Path("disk/filler")
shutil.copytree(cache, "disk/cache")
shutil.rmtree(cache)
os.symlink("../disk/cache", cache)
before = params.read(pathlib.Path("dvc.lock"))
free = shutil.disk_usage("disk").free
room.write_bytes(b"0" * (free - 100_000))
try:
    graph.reproduce("train@sts", print)
except processes.StageFailed as error:
    assert "No space left on device" in str(error), error
    print("refused:", str(error).splitlines()[-1])
after = params.read(pathlib.Path("dvc.lock"))["stages"]
assert after.get("train@sts") in (None, before["stages"]["train@sts"])
room.unlink()
graph.mend()
assert not [*pathlib.Path("disk/cache").rglob("*.tmp")]
assert graph.reproduce("train@sts", print) == "ran"
"""


@pytest.mark.fault(6)
def test_a_full_disk_under_the_cache_is_named_nothing_is_recorded_and_room_is_all_it_needs(copy, inside):
    """DVC itself says so in a line and, where the space suffices for that, records outputs that its cache has not."""
    inside(copy)
    copy.edit("seed", 7)
    done = on_a_small_disk(copy.folder, 8_000_000 // 4096 * 4096, FULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused: " in done.stdout


ONE_STAGE = """
stages:
  big:
    cmd: mkdir -p out && head -c 600000 /dev/zero > out/big
    outs: [out]
"""
SILENT = """
import os, pathlib, shutil, subprocess, sys
from flows import graph, processes
from steps import params
for line in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
    subprocess.run(line, check=True)
os.symlink("../disk", ".dvc/cache")
room = pathlib.Path("disk/filler")
room.write_bytes(b"0" * 1_600_000)
try:
    print(graph.reproduce("big", print))
except processes.StageFailed as error:
    print("refused:", error)
assert params.read(pathlib.Path("dvc.lock"))["stages"] == {}
room.unlink()
outcome = graph.reproduce("big", print)
assert outcome == "ran", outcome
kept = [*pathlib.Path("disk/files/md5").glob("??/*")]
assert graph.discard_damaged(["big"]) == [] and len(kept) == 2, kept
"""


@pytest.mark.fault(6)
def test_a_stage_that_dvc_calls_done_without_keeping_its_outputs_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(ONE_STAGE, encoding="utf-8")
    done = on_a_small_disk(tmp_path, 2_000_000 // 4096 * 4096, SILENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused: big is done, but DVC's cache could not take its outputs: " in done.stdout
    assert "No space left on device" in done.stdout
