"""Real signals and real processes: a kill -9, a polite stop, a second writer; a full database."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from flows import processes
from steps import command, provenance, resuming, schema
from tests.project import Project
from tests.test_checkpoint import on_a_small_disk
from tests.waiting import until

TRAIN = ("-m", "steps.train", "sts", "data/prepared/sts", "again", "curves")


@contextlib.contextmanager
def training(project: Project):
    """`python -m steps.train`, as DVC starts it, into a folder of its own; what it says goes to the file `said`."""
    with open(project / "said", "w") as said:
        process = subprocess.Popen([sys.executable, *TRAIN], cwd=project.folder, stdin=subprocess.DEVNULL, stdout=said,
                                   stderr=subprocess.STDOUT,
                                   env=project.environment | {"EVERGREEN_TRACKING": "none"})
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def training_for_hours(project: Project):
    """The same, without an end, from its first checkpoint on."""
    project.edit("recipes.sts.train.epochs", 6000)
    project.edit("recipes.sts.train.patience", 6000)
    with training(project) as process:
        until(lambda: committed(project) or process.poll() is not None, 60)
        yield process


def trained(project: Project) -> dict[str, str]:
    return {path.name: provenance.sha256(path) for path in (
        project / "again/model.safetensors", *sorted((project / "curves").iterdir()))}


def committed(project: Project) -> list[str]:
    return sorted(path.parent.name for path in project.folder.glob(".evergreen/checkpoints/sts/*/*/manifest.json"))


@pytest.fixture
def long(copy) -> Project:
    """A training of some seconds."""
    copy.edit("checkpoint_seconds", 0)
    copy.edit("recipes.sts.train.epochs", 40)
    copy.edit("recipes.sts.train.patience", 60)
    return copy


@pytest.mark.fault(1)
@pytest.mark.fault(8)
def test_a_training_that_was_killed_and_one_that_was_asked_to_stop_end_with_the_bits_of_one_that_was_left_alone(long):
    with training(long) as process:
        assert process.wait(120) == 0, (long / "said").read_text()
    expected = trained(long)
    for path in ("again", "curves"):
        shutil.rmtree(long / path)

    with training(long) as process:
        until(lambda: committed(long) or process.poll() is not None, 60)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
    killed_at = committed(long)
    assert killed_at and not (long / "again").exists()

    for number in (signal.SIGTERM, signal.SIGINT):
        before = committed(long)
        with training(long) as process:
            until(lambda: "continues from" in (long / "said").read_text() or process.poll() is not None, 60)
            began = time.monotonic()
            process.send_signal(number)
            assert process.wait(40) == 130, (long / "said").read_text()
            assert time.monotonic() - began < 30
        assert committed(long)[-1] > before[-1]
        assert "interrupted; the next run continues where this one ended" in (long / "said").read_text()

    with training(long) as process:
        assert process.wait(120) == 0
    assert f"continues from the checkpoint of step {int(committed_step(before))}" not in (long / "said").read_text()
    assert trained(long) == expected
    assert committed(long) == []


def committed_step(names: list[str]) -> str:
    return names[-1].removeprefix("checkpoint-")


@pytest.mark.fault(9)
@pytest.mark.fault(12)
def test_a_second_writer_of_an_output_is_refused_in_10_seconds_and_told_of_the_first(long):
    with training_for_hours(long) as process:
        began = time.monotonic()
        code = ("import sys, time; from steps import command\n"
                "sys.exit(command.status(lambda a: command.only_writer(a).__enter__(), ['curves']))")
        second = long.run(sys.executable, "-c", code, check=False)
        assert time.monotonic() - began < 10
        assert second.returncode == 2
        assert f"process {process.pid}" in second.stderr and "works in curves" in second.stderr
        assert process.poll() is None
        process.kill()
        process.wait(10)
        assert long.run(sys.executable, "-c", code, check=False).returncode == 0


@pytest.mark.fault(9)
def test_two_trainings_of_a_recipe_are_refused_whatever_they_write(long):
    """They have one place for checkpoints."""
    with training_for_hours(long) as process:
        second = long.run(sys.executable, *TRAIN[:4], "another", "more", check=False, EVERGREEN_TRACKING="none")
        assert second.returncode == 2
        assert f"process {process.pid}" in second.stderr and "works in the training of sts" in second.stderr
        assert process.poll() is None and committed(long)


@pytest.mark.fault(9)
def test_a_killed_dvc_repro_takes_its_step_with_it_and_the_next_one_has_the_same_bits(long):
    """DVC alone, without the flow."""
    long.edit("recipes.sts.train.epochs", 12)
    with training(long) as process:
        assert process.wait(120) == 0, (long / "said").read_text()
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro", "train@sts"], cwd=long.folder, env=long.environment,
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: committed(long) or process.poll() is not None, 60)
        process.kill()
    done = long.dvc("repro", "train@sts")
    assert "continues from the checkpoint of step" in done.stdout
    assert provenance.sha256(long / "models/sts/model.safetensors") == trained(long)["model.safetensors"]


@pytest.mark.fault(9)
def test_a_lock_is_free_when_its_holder_is_dead_and_different_outputs_have_different_locks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "WAIT", 0.1)
    ready, told = os.pipe()
    if not (child := os.fork()):
        with command.only_writer(["sts", "data/a"]):
            os.write(told, b"1")
            time.sleep(60)
    os.read(ready, 1)
    with command.only_writer(["sts", "data/b"]):
        pass
    with pytest.raises(schema.InputError, match=f"process {child}"), command.only_writer(["sts", "data/a"]):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with command.only_writer(["sts", "data/a"]):
        pass


# Stopped


@pytest.fixture
def siblings(monkeypatch) -> list[subprocess.Popen]:
    """Three that each need two seconds to end, as commands of this run."""
    slow = ("import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: (time.sleep(2), sys.exit(3))); "
            "print('ready', flush=True); time.sleep(60)")
    found = [subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE, start_new_session=True)
             for _ in range(3)]
    monkeypatch.setattr(processes, "_running", set(found))
    monkeypatch.setattr(processes, "_stopped", threading.Event())
    for process in found:
        process.stdout.readline()
    yield found
    for process in found:
        process.kill()
        process.communicate()


def test_what_runs_side_by_side_is_stopped_in_the_time_of_one(siblings):
    began = time.monotonic()
    processes.stop()
    assert time.monotonic() - began < 5
    assert [process.poll() for process in siblings] == [3, 3, 3]


def test_a_training_has_its_patience_before_it_is_asked_harder_and_prefect_kills_none():
    (_, politely), (_, harder), _ = processes.ASKED
    assert resuming.PATIENCE + resuming.SAVING < politely < politely + harder < 30


# A database


@pytest.mark.fault(6)
def test_a_full_database_is_named():
    import sqlite3

    database = sqlite3.connect(":memory:")
    database.execute("create table t (x)")
    database.execute("pragma max_page_count = 3")
    with pytest.raises(sqlite3.OperationalError) as full:
        database.execute("insert into t values (?)", ("x" * 100_000,))
    assert command.no_space(full.value)
    assert not command.no_space(sqlite3.OperationalError("database is locked"))


STORE = """
import os, pathlib, shutil
from steps import command, register, registry, tracking
os.symlink("disk", ".evergreen")
found, room = tracking.client(), pathlib.Path("disk/filler")
for left in (0, 20_000, 200_000):
    room.write_bytes(b"0" * (shutil.disk_usage("disk").free - left))
    assert command.status(lambda _: register.register("sts") and None, []) == 1, left
    room.unlink()
    assert not found.search_model_versions("name = 'sts'")
assert register.register("sts").number == 1
registry.verified(found, "sts", 1)
"""


@pytest.mark.fault(6)
def test_a_registration_on_a_full_disk_says_so_leaves_no_version_and_ends_well_once_there_is_room(copy, inside):
    """No byte for the database; room for a row of it and not for the model; for the model and not for all of it."""
    inside(copy)
    shutil.rmtree(copy / ".evergreen")
    done = on_a_small_disk(copy.folder, 8_000_000 // 4096 * 4096, STORE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("error: no space left on the disk") == 3
