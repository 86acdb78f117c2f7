"""A DVC command -> a process that ends with ours, its lines as they come, and how it ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from steps import command

CLONE = Path(".evergreen/run")      # the lock of whoever works in this folder
# How the stages are asked to end, and the seconds until they are asked harder: more than PATIENCE and SAVING of a
# training, and less in all than the 30 after which Prefect kills a cancelled run.
ASKED = ((signal.SIGINT, 23.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0))
END = 26.0          # seconds in which a run that was asked to end is gone, whoever it then still waits for
CHATTER = ("Updating lock file", "Generating lock file", "To track the changes", "\tgit add", "To enable auto",
           "\tdvc config", "Use `dvc push`", "Running stage", "Stage '", "> ", "Data and pipelines are up to date")
# The process that runs DVC ends with ours even by kill -9, and gives its locks back as it does; a step ends with it.
DVC = """
import signal, sys
from steps import command, params
command.die_with_parent()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
from dvc.cli import main
sys.exit(main(sys.argv[1:]))
"""
COMMAND = (sys.executable, "-c", DVC)
# Ends another process when ours has ended, by kill -9 too. One that ended before cannot have given its number away yet.
WATCH = """
import os, signal, sys, time
ours, other = map(int, sys.argv[1:])
while os.getppid() == ours:
    time.sleep(0.5)
try:
    os.kill(other, signal.SIGTERM)
except ProcessLookupError:
    pass
"""
_running: set[subprocess.Popen] = set()
_lock = threading.Lock()
_stopped = threading.Event()


class StageFailed(RuntimeError):
    """Raised when a stage's command fails for a reason that is not the user's input."""


class StageKilled(StageFailed):
    """Raised when a stage's process was ended by kill -9, as the kernel does where memory is short."""


def start_anew() -> None:
    """Lets processes be started again after a stop."""
    _stopped.clear()


def run(what: str, arguments: list[str], on_line: Callable[[str], None], folder: Path | None = None,
        python: str = sys.executable, variables: Mapping[str, str] | None = None) -> tuple[int, str, list[str]]:
    """A DVC command in a process group of its own, its lines to `on_line`: exit status, what a stage did, the lines."""
    environment = os.environ | command.QUIET | {
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}", "PYTHONUNBUFFERED": "1",
        command.PARENT: str(os.getpid()), **(variables or {})}
    with _lock:
        if _stopped.is_set():
            raise StageFailed(f"{what} was not started: the run was stopped")
        process = subprocess.Popen(
            [python, "-c", DVC, "--wait-for-lock", *arguments], cwd=folder, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True)
        _running.add(process)
    outcome, said = "unchanged", []
    try:
        for line in process.stdout:
            line = line.rstrip().rpartition("\r")[2]
            if line.startswith("Running stage"):
                outcome = "ran"
            elif "is cached - skipping run" in line:
                outcome = "restored"
            if line.strip() and not line.startswith(CHATTER) and not _stopped.is_set():
                said.append(line)
                on_line(line)
        process.wait()
    finally:
        with _lock:
            _running.discard(process)
        _end([process])
    if process.returncode and _stopped.is_set():
        raise StageFailed(f"{what} was stopped")
    if process.returncode == -signal.SIGKILL:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)      # a step whose DVC was killed would still save
    return process.returncode, outcome, said


def end_with_us(pid: int) -> None:
    """Lets a process that a library has started end when ours does, however that ends."""
    subprocess.Popen([sys.executable, "-S", "-c", WATCH, str(os.getpid()), str(pid)], stdin=subprocess.DEVNULL,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def stop() -> None:
    """Ends every command that runs, with all its children; until start_anew() none is started."""
    with _lock:
        _stopped.set()
        running = list(_running)
    _end(running)


def stopped() -> bool:
    """Whether the run was stopped."""
    return _stopped.is_set()


def pause(seconds: float) -> bool:
    """Waits so long, or until the run is stopped; says whether it was."""
    return _stopped.wait(seconds)


def _end(running: list[subprocess.Popen]) -> None:
    """All are asked at once and have the same time, so that many end as soon as one."""
    for how, seconds in ASKED:
        running = [process for process in running if process.poll() is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
        until = time.monotonic() + seconds
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
