"""The stack's processes: started apart from the terminal, known by their start time, ended with all they started."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

MARK = "EVERGREEN_STACK_PART"       # in the environment of every process of a part: which stack's and which part
GRACE = 30.0                        # seconds to end after having been asked to


class Part:
    """One long-lived process with its children."""

    def __init__(self, folder: Path, name: str, ends_by: int = signal.SIGTERM):
        self.name, self.ends_by = name, ends_by
        self.record, self.log = folder / "pids" / f"{name}.json", folder / "logs" / f"{name}.log"
        self.mark = f"{folder.absolute()}/{name}"

    def leader(self) -> psutil.Process | None:
        """The process that was started, if it lives; never another one that got its number since."""
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            kept = json.loads(self.record.read_text(encoding="utf-8"))
            process = psutil.Process(kept["pid"])
            if started(kept["pid"]) == kept["started"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def start(self, command: Sequence[str], environment: Mapping[str, str], **options) -> None:
        """Ends what a killed leader left, then starts it anew."""
        self.stop()
        for folder in (self.record.parent, self.log.parent):
            folder.mkdir(exist_ok=True)
        with open(self.log, "ab") as log:
            process = subprocess.Popen(command, env={**environment, MARK: self.mark}, stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, start_new_session=True, preexec_fn=hear_signals,
                                       **options)
        half = self.record.with_suffix(".new")
        half.write_text(json.dumps({"pid": process.pid, "started": started(process.pid)}), encoding="utf-8")
        half.replace(self.record)

    def family(self) -> list[psutil.Process]:
        """The leader, what descends from it, and what lost it."""
        found = [leader, *leader.children(recursive=True)] if (leader := self.leader()) else []
        return [*found, *(p for p in marked(self.mark) if p not in found)]

    def stop(self) -> bool:
        """Asks the leader to end, then all that is left of it, then ends it by force. Says whether there was any."""
        family = self.family()
        for asked, seconds in ((family[:1], GRACE), (family, GRACE / 3)):
            for process in asked:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(self.ends_by)
            psutil.wait_procs(asked, seconds)
        left = [p for p in {*family, *self.family()} if p.is_running()]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, 10)
        self.record.unlink(missing_ok=True)
        return bool(family)

    def last_lines(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-15:])


def started(pid: int) -> str:
    """When a process started: the boot and its clock ticks since, which no change of the time of day touches."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()[19]}"


def hear_signals() -> None:
    """A shell starts what runs beside it deaf to Ctrl-C, and a worker that is deaf does not end in order."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def marked(mark: str) -> Iterable[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                yield process


def wait(what: str, ready, part: Part | None, seconds: float = 180.0) -> float:
    """Waits until ready() is true, where an OSError is a no. Returns the seconds it took; raises TimeoutError."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(OSError):
            if ready():
                return time.monotonic() - began
        dead = part is not None and part.leader() is None
        if dead or time.monotonic() - began > seconds:
            why = "ended" if dead else f"did not answer within {seconds:.0f} s"
            log = f"; the end of {part.log}:\n{part.last_lines()}" if part else ""
            raise TimeoutError(f"{what} {why}{log}")
        time.sleep(0.2)
