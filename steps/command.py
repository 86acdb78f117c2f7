"""The process of one step: quiet libraries, one exit status per kind of ending, no life after its parent."""

import atexit
import ctypes
import errno
import gc
import hashlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from steps.schema import InputError

LOCKS = Path(".evergreen/locks")
ENDING = 60.0       # seconds that a process has for its end
NOT_MADE = "neither DVC's cache nor the remote has it"        # said in place of a step where EVERGREEN_STEPS is none
PARENT = "EVERGREEN_PARENT"     # the process that starts the next one
WAIT = 8.0          # seconds for another writer of the same output to end, before it is named

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",     # a pickle runs code when it is loaded
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    "GOMP_SPINCOUNT": "10000",      # threads that spin long at barriers cost up to 8x where cores are shared
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def quiet(offline: bool = True) -> None:
    """Turns telemetry off and, for steps that need no network, the hub too, before a library is imported."""
    inside = {"MPLCONFIGDIR": os.path.abspath(".evergreen/matplotlib")}     # else it writes to the home folder
    for key, value in (QUIET | inside | (OFFLINE if offline else {})).items():
        os.environ.setdefault(key, value)


def unblock() -> None:
    """Lets a polite request to end through: a process inherits what its starter blocked, and some block that."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def die_with_parent() -> None:
    """Asks Linux to end this process when the one that started it dies, so that no step outlives its driver.

    Linux tells of no death that was before: where the parent is another already, it ends now.
    """
    unblock()
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        parent = os.environ.get(PARENT)
        if parent and int(parent) not in (os.getppid(), os.getpid()):       # itself, where it was called before
            sys.exit(f"error: process {parent}, which started this one, is gone: start it again (a shell between the "
                     "two must `exec` this one)")
        os.environ[PARENT] = str(os.getpid())


def main(body: Callable[[Sequence[str]], None], offline: bool = True, writer: bool = True) -> None:
    """Runs a step's body on its arguments. Exit status: 0 done, 1 a full disk, 2 bad input, 130 interrupted.

    One that is no `writer` holds no lock of its own: the process that started it does.
    """
    quiet(offline)
    die_with_parent()

    def alone(arguments: Sequence[str]) -> None:
        if os.environ.get("EVERGREEN_STEPS") == "none":
            raise InputError(NOT_MADE)
        with only_writer(arguments if writer else ()):
            body(arguments)

    run(alone)


def run(body: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Runs the body on the process's arguments and ends the process with its status.

    Python's garbage collector would take a quarter of the time of importing torch and, at the end, seconds. Libraries
    may wait at the end for somebody who is gone: Prefect has been seen to offer its logs to a dead server for minutes.
    """
    gc.set_threshold(20_000)
    code = 1
    try:
        code = status(body, sys.argv[1:])
    finally:
        gc.freeze()
        end_within(ENDING, code)
    sys.exit(code)


def end_within(seconds: float, code: int) -> None:
    """Lets this process end with that status after so many seconds, whatever it then waits for."""
    threading.Thread(target=_end_late, args=(seconds, code), daemon=True).start()


def _end_late(seconds: float, code: int) -> None:
    time.sleep(seconds)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):     # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


@contextmanager
def only_writer(arguments: Sequence[str]) -> Iterator[None]:
    """Holds the lock of what a step writes, the last path among its arguments, as long as the step lives."""
    written = [a for a in arguments if not a.startswith("-")][-1:]
    if not written:
        yield
        return
    with only_one(LOCKS / written[0].strip("/").replace("/", "-"), written[0], WAIT):
        yield


@contextmanager
def only_one(name: Path, what: str, seconds: float = 0.0) -> Iterator[None]:
    """One process at a time in the block; the kernel frees the lock when the process ends, however it ends.

    Raises InputError naming the holder where the lock is not free after so many seconds.
    """
    from filelock import FileLock, Timeout

    name.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = name.with_name(name.name + ".lock"), name.with_name(name.name + ".pid")
    try:
        with FileLock(lock, timeout=seconds):
            holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
            yield
    except Timeout:
        pid = holder.read_text(encoding="utf-8").strip() if holder.exists() else "unknown"
        raise InputError(f"another run (process {pid}) works in {what}; wait for it or stop it") from None


def status(body: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    try:
        return body(arguments) or 0
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 141
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        said = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        print(f"error: {said}; correct the path or its permissions", file=sys.stderr)
        return 2
    except Exception as error:
        if not no_space(error):
            raise
        print(f"error: no space left on the disk ({str(error).splitlines()[0]}); nothing is lost or half written: free "
              "some, then run the same command again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the next run continues where this one ended", file=sys.stderr)
        return 130


def no_space(error: BaseException | None) -> bool:
    """Whether a full disk is behind the error, which libraries wrap in errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(said in str(error).lower() for said in ("no space left", "disk is full", "quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def identity() -> str:
    """This process, among those of all machines and containers: two of these may have one host name."""
    return f"{_machine()}-{os.getpid()}"


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    unique = f"{boot.read_text()}{os.stat('/proc/self/ns/pid').st_ino}" if boot.exists() else ""      # else not Linux
    return f"{socket.gethostname()}-{hashlib.sha256(unique.encode()).hexdigest()[:12]}"


def ended(whose: str, began: float) -> bool:
    """Whether the process of this identity, at work at that time, is gone; False where it is another machine's."""
    import psutil

    machine, _, pid = whose.rpartition("-")
    if machine != _machine():
        return False
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(int(pid))
        return found.status() == "zombie" or found.create_time() > began
    return True


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` when the block ends well, and else goes.

    Raises InputError where a relative path leads out of this folder by a link.
    """
    if not folder.is_absolute() and not (there := folder.parent.resolve()).is_relative_to(Path.cwd().resolve()):
        raise InputError(f"{folder.parent} is a link that leads out of this folder, to {there}; remove the link: DVC's "
                         "cache is what may lie elsewhere (dvc cache dir)")
    partial = folder.with_name(f".partial-{folder.name}")       # one name, so that the next try clears what a kill left
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def own_folder(place: Path) -> str:
    """A new folder there, which ends with this process; those of processes of this machine that were killed go now."""
    place.mkdir(parents=True, exist_ok=True)
    for left in place.iterdir():
        with suppress(FileNotFoundError):       # another process cleans up too
            if ended(left.name.rpartition("-")[0], left.stat().st_mtime):
                shutil.rmtree(left, ignore_errors=True)
    own = tempfile.mkdtemp(prefix=f"{identity()}-", dir=place)
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own
