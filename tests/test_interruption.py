"""A run that is interrupted, killed, doubled or refused leaves nothing behind, and the next one continues."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.project import Project, sample, write_rows
from tests.waiting import until

GONE = 30       # seconds until no process of an interrupted run is left


def processes(project: Project) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(project.folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def steps(project: Project) -> list[list[str]]:
    """The command lines of dvc and of the steps that run in the project."""
    found = []
    for process in processes(project):
        with contextlib.suppress(psutil.Error):
            if {"repro", "steps.train"} & set(command := process.cmdline()):
                found.append(command)
    return found


@contextlib.contextmanager
def running(project: Project) -> Iterator[subprocess.Popen]:
    """`evergreen run sts` with the terminal's process group of its own; what it prints goes to the file `said`.

    Its starter blocks SIGTERM, as some services do, ignores no SIGINT, as a shell's `&` does, and names the one shell
    that every system has, which on some starts a command as its child instead of becoming it.
    """
    def start():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with open(project.folder.parent / "said", "w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", "sts"], cwd=project.folder,
            env=project.environment | {"SHELL": "/bin/sh"}, stdin=subprocess.DEVNULL, stdout=said,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=start)
    try:
        yield process
    finally:
        for left in processes(project):
            with contextlib.suppress(psutil.Error):
                left.kill()
        process.wait(10)


def train_for_hours(project: Project) -> None:
    project.edit("recipes.sts.train.epochs", 50_000)
    project.edit("recipes.sts.train.patience", 50_000)
    project.edit("checkpoint_seconds", 0)


def wait_for_training(project: Project, process: subprocess.Popen) -> None:
    """Until there is a checkpoint."""
    found = project / ".evergreen/checkpoints/sts"
    until(lambda: list(found.glob("*/*/manifest.json")) or process.poll() is not None, 120)
    assert process.poll() is None, said(project)


def said(project: Project) -> str:
    return (project.folder.parent / "said").read_text()


def models(project: Project) -> list[str]:
    return sorted(path.name for path in (project / "models").iterdir() if path.name != ".gitignore")


@pytest.mark.fault(8)
def test_ctrl_c_ends_every_process_and_the_next_run_continues(copy):
    copy.edit("recipes.sts.prepare.max_length", 64)
    before = (copy / "params.yaml").read_bytes()
    train_for_hours(copy)
    with running(copy) as process:
        wait_for_training(copy, process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(GONE) == 130
        until(lambda: not processes(copy), GONE)
    assert "prepare@sts | ran" in said(copy)
    assert "interrupted; the next run continues" in said(copy)
    assert "Traceback" not in said(copy)
    assert models(copy) == ["base"]

    (copy / "params.yaml").write_bytes(before)
    next_run = copy.evergreen("run", "sts").stdout
    assert "prepare@sts unchanged, train@sts ran, evaluate@sts ran" in next_run
    assert "sts@1 (challenger), registered now" in next_run
    assert models(copy) == ["base", "sts"]


@pytest.mark.fault(8)
def test_sigterm_to_every_process_at_once_leaves_a_checkpoint_and_no_process(copy):
    """As a service manager stops a unit: the step, DVC above it, Prefect's own server and the run itself."""
    train_for_hours(copy)
    copy.edit("checkpoint_seconds", 600)
    with running(copy) as process:
        until(lambda: "| training " in said(copy) or process.poll() is not None, 120)
        for each in processes(copy):
            each.send_signal(signal.SIGTERM)
        assert process.wait(GONE) == 130
        until(lambda: not processes(copy), 5)
    assert len(list((copy / ".evergreen/checkpoints/sts").glob("*/*/manifest.json"))) == 1


@pytest.mark.fault(9)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_no_step_outlives_a_killed_run_and_the_next_run_works(copy):
    """No line of progress in all that time: a step whose reader is gone would end at its next line anyway."""
    changed = {path: (copy / path).read_bytes() for path in ("params.yaml", "steps/progress.py")}
    silent = changed["steps/progress.py"].replace(b"HEARTBEAT = 5.0", b"HEARTBEAT = 600.0")
    assert silent != changed["steps/progress.py"]
    (copy / "steps/progress.py").write_bytes(silent)
    train_for_hours(copy)
    with running(copy) as process:
        wait_for_training(copy, process)
        assert any("steps.train" in command for command in steps(copy))
        process.kill()
        until(lambda: not processes(copy), GONE)
    assert models(copy) == ["base"]

    for path, content in changed.items():
        (copy / path).write_bytes(content)
    next_run = copy.evergreen("run", "sts").stdout
    assert "train@sts restored, evaluate@sts unchanged" in next_run
    assert "sts@1 (challenger), registered now" in next_run


@pytest.mark.fault(12)
@pytest.mark.fault(13)
def test_a_second_run_in_the_folder_is_refused_and_told_of_the_first_and_so_are_nine_more(copy):
    copy.edit("seed", 7)
    with running(copy) as process:
        until((copy / ".evergreen/run.pid").exists, 30)
        until(lambda: (copy / ".evergreen/run.pid").read_text() == f"{process.pid}\n", 30)
        began = time.monotonic()
        second = copy.evergreen("run", "sts", check=False)
        assert time.monotonic() - began < 10
        more = [subprocess.Popen([sys.executable, "-m", "flows.cli", "run", "sts"], cwd=copy.folder,
                                 env=copy.environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                for _ in range(9)]
        assert {one.wait(60) for one in more} == {2}
        assert process.poll() is None
    assert second.returncode == 2
    assert f"process {process.pid}" in second.stderr


def test_a_bad_row_is_named_with_its_file_and_line_and_nothing_else(copy):
    rows = sample("train", 48)
    rows[4] = ["a text", "another", "9.5"]
    write_rows(copy / "samples/appliances/train.csv", rows)
    done = copy.evergreen("run", "sts", check=False)
    assert done.returncode == 2
    assert done.stderr.count("error: data/raw/appliances/train.csv:5: score = '9.5' is outside 0 to 5") == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_a_lock_file_that_a_kill_left_half_written_is_no_obstacle(copy):
    (copy / ".dvc/tmp/rwlock").write_text('{"read": {', encoding="utf-8")
    assert "sts@1 (challenger), registered now" in copy.evergreen("run", "sts").stdout


def test_a_library_that_waits_at_the_end_for_somebody_who_is_gone_does_not_keep_the_process(tmp_path):
    code = ("import threading, time; from steps import command; command.ENDING = 1.0; "
            "threading._register_atexit(time.sleep, 600); command.run(lambda arguments: print('all of it') or {})")
    done = subprocess.run([sys.executable, "-c", code.format("3")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "all of it\n", "")
    done = subprocess.run([sys.executable, "-c", code.format("1 / 0")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "all of it\n")
    unread = subprocess.Popen([sys.executable, "-c", code.format("3")], stdout=subprocess.PIPE)
    unread.stdout.close()
    assert unread.wait(60) == 141
