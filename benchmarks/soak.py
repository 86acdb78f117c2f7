"""Retrainings on a tiny model with kills of random processes at random moments, and a check of what they left.

python -m benchmarks.soak [--runs 40] [--seed 0] [--killed 0.5] [--history .evergreen/soak.jsonl]

A killed `evergreen run` is started again until it ends, and nothing else is ever done. The history is a file that is
only appended to: every start, kill and end as this process does and sees them, every checkpoint as its manifest gets
its name, and every version and every move of an alias as triggers in MLflow's database write them down within the
transaction that makes them. The check at the end reads the history, the registry, the disk and the process table.
"""

import argparse
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.soak_check import check
from steps import command
from tests import project as small

ATTEMPTS = 4        # of a retraining; the last is left alone
WAIT = 600          # seconds in which a start that is left alone ends
WATCH = """
CREATE TABLE soak (number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL, what TEXT, alias TEXT, version INTEGER);
CREATE TRIGGER soak_kept BEFORE UPDATE ON soak BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END;
CREATE TRIGGER soak_whole BEFORE DELETE ON soak BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END;
""" + "".join(
    f"CREATE TRIGGER soak_{what} AFTER {event} ON {table} BEGIN INSERT INTO soak (time, what, alias, version) "
    f"VALUES ((julianday('now') - 2440587.5) * 86400, '{what}', {alias}, {row}.version); END;\n"
    for what, event, table, alias, row in (
        ("register", "INSERT", "model_versions", "NULL", "NEW"),
        ("unregister", "DELETE", "model_versions", "NULL", "OLD"),
        ("withdraw", "UPDATE OF current_stage", "model_versions", "NULL", "NEW"),
        ("name", "INSERT", "registered_model_aliases", "NEW.alias", "NEW"),
        ("rename", "UPDATE", "registered_model_aliases", "NEW.alias", "NEW"),
        ("unname", "DELETE", "registered_model_aliases", "OLD.alias", "OLD")))


class Soak:
    def __init__(self, folder: Path, history: Path, seed: int, killed: float):
        (folder / "home").mkdir()
        (folder / "tmp").mkdir()
        self.folder, self.history, self.number, self.writing = folder, history, 0, threading.Lock()
        self.random, self.killed, self.lasts, self.seen = random.Random(seed), killed, 60.0, 0
        self.known: set[tuple[str, int]] = set()        # checkpoints that were noted
        self.environment = small.new_user(folder / "home") | command.QUIET | {
            "TMPDIR": str(folder / "tmp"), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "45"}
        self.project = small.make_project(folder / "project", small.make_tiny_model(folder / "tiny"),
                                             self.environment)
        self.project.change(self.shorten)
        self.project.run(sys.executable, "-c", "from steps import tracking; tracking.client()")
        self.ask(WATCH)

    def shorten(self, values: dict) -> None:
        values["checkpoint_seconds"] = 0
        values["recipes"]["sts"]["train"] |= {"epochs": 20, "patience": 20}
        values["recipes"]["sts"]["gate"] |= {
            "floor": -1.0, "min_rows": 2, "slices": {}, "resamples": 100, "tolerance": 1.0,
            "latency": {"texts": 1, "rounds": 1, "ratio": None, "milliseconds": None}}

    def ask(self, script: str) -> None:
        import sqlite3

        with contextlib.closing(sqlite3.connect(self.project / ".evergreen/mlflow.db", timeout=60)) as database:
            database.executescript(script)

    def note(self, what: str, at: float | None = None, **more) -> None:
        with self.writing, open(self.history, "a", encoding="utf-8") as file:
            self.number += 1
            line = {"number": self.number, "time": round(at or time.time(), 3), "what": what, **more}
            file.write(json.dumps(line) + "\n")
            print(*(f"{key}={value}" if key != "what" else value for key, value in line.items()), flush=True)

    def note_the_registry(self) -> None:
        """Copies what the triggers wrote since the last time."""
        import sqlite3

        with contextlib.closing(sqlite3.connect(self.project / ".evergreen/mlflow.db", timeout=60)) as database:
            rows = database.execute("SELECT number, time, what, alias, version FROM soak WHERE number > ?",
                                    (self.seen,)).fetchall()
        for number, at, what, alias, version in rows:
            self.note(what, at, version=version, **({"alias": alias} if alias else {}))
            self.seen = number

    @contextlib.contextmanager
    def noting_checkpoints(self, seed: int) -> Iterator[None]:
        """Two are kept, so that each is there for longer than this takes to look again."""
        self.saved = 0
        ended = threading.Event()

        def look():
            while not ended.wait(0.01):
                for path in sorted(self.project.folder.glob(".evergreen/checkpoints/sts/*/*/manifest.json")):
                    with contextlib.suppress(FileNotFoundError):
                        if (mark := (path.parent.name, path.stat().st_mtime_ns)) not in self.known:
                            self.known.add(mark)
                            self.saved += 1
                            self.note("save", path.stat().st_mtime, seed=seed, step=int(path.parent.name[-8:]))
        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd().startswith(str(self.folder)) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def run(self, seed: int, promoted: bool) -> None:
        """Asks for a training from a seed, as often as it takes: a run that was killed is started again."""
        self.project.edit("seed", seed)
        self.project.edit("recipes.sts.gate.margin", -3.0 if promoted else 3.0)
        for attempt in range(ATTEMPTS):
            kill = attempt < ATTEMPTS - 1 and self.random.random() < self.killed
            moment = self.random.random() if kill else None
            saves = self.random.randrange(1, 6) if kill and self.random.random() < 0.4 else None
            self.note("start", seed=seed, attempt=attempt, promoted=promoted)
            began, said = time.monotonic(), self.folder / "said"
            with self.noting_checkpoints(seed), open(said, "w") as out:
                process = subprocess.Popen([sys.executable, "-m", "flows.cli", "run", "sts"],
                                           cwd=self.project.folder, env=self.environment, stdin=subprocess.DEVNULL,
                                           stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
                if kill:
                    self.kill_one(process, moment * self.lasts, saves)
                try:
                    code = process.wait(WAIT)
                except subprocess.TimeoutExpired:
                    self.note("hang", seed=seed, processes=[" ".join(p.cmdline())[-80:] for p in self.processes()])
                    for left in self.processes():
                        left.kill()
                    code = process.wait()
            text = said.read_text(encoding="utf-8", errors="replace")
            for step in re.findall(r"continues from the checkpoint of step (\d+)", text):
                self.note("resume", seed=seed, step=int(step))
            self.note_the_registry()
            if code == 0:
                if not kill:
                    self.lasts = time.monotonic() - began
                self.note("end", seed=seed, seconds=round(time.monotonic() - began, 1), left=self.left())
                return
            self.note("broken", seed=seed, code=code, said=text.strip().splitlines()[-1:])
            if not kill:
                print(text)
        self.note("lost", seed=seed)

    def left(self) -> list[str]:
        """What still runs behind the end of a run, which is given some seconds to be gone."""
        end = time.monotonic() + 20
        while (there := self.processes()) and time.monotonic() < end:
            time.sleep(0.2)
        return [" ".join(process.cmdline())[-80:] for process in there]

    def kill_one(self, process: subprocess.Popen, after: float, saves: int | None) -> None:
        """After so many seconds, or within the training: right after so many of its checkpoints."""
        began = time.monotonic()
        while process.poll() is None and (
                time.monotonic() - began < after if saves is None else self.saved < saves):
            time.sleep(0.005)
        if there := sorted(self.processes(), key=lambda p: p.pid):
            victim = self.random.choice(there)
            with contextlib.suppress(psutil.Error):
                name = " ".join(victim.cmdline())[-60:]
                victim.send_signal(signal.SIGKILL)
                self.note("kill", after=round(time.monotonic() - began, 1), process=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--killed", type=float, default=0.5, help="the share of starts that are killed")
    parser.add_argument("--history", type=Path, default=Path(".evergreen/soak.jsonl"))
    options = parser.parse_args()
    began = time.monotonic()
    options.history.parent.mkdir(parents=True, exist_ok=True)
    options.history.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), options.history.absolute(), options.seed, options.killed)
        for number in range(options.runs):
            soak.run(100 + number, promoted=number % 4 != 3)
        sys.exit(check(soak.project, soak.folder, options.history, time.monotonic() - began))


if __name__ == "__main__":
    main()
