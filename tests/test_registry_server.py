"""The registry behind an MLflow server: on PostgreSQL with eight writers, and where answers are lost on the way."""

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps import command, history, journal, register, tracking
from tests.project import Project
from tests.test_registry_faults import WRITERS, everything_was_registered, faults  # noqa: F401

INSTALLED = [shutil.which("initdb"), *Path("/usr/lib/postgresql").glob("*/bin/initdb")]
BINARIES = [Path(path).resolve().parent for path in INSTALLED if path]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def process(*arguments: str, ready, **options) -> Iterator[subprocess.Popen]:
    """A server that runs until the end of the block; it has started once ready() raises no OSError."""
    started = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                               **options)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert started.poll() is None and time.monotonic() < deadline
            with contextlib.suppress(OSError):
                ready()
                break
            time.sleep(0.2)
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, 15)
        started.wait(30)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A fresh cluster below /tmp, which its own user must be able to enter; the URI of its database."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    who = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    if who:
        shutil.chown(folder, "postgres")
    port, clean = free_port(), {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    try:
        subprocess.run([BINARIES[0] / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "--no-sync"],
                       check=True, capture_output=True, env=clean, cwd=folder, **who)
        with process(str(BINARIES[0] / "postgres"), "-D", str(folder / "data"), "-k", str(folder), "-p", str(port),
                     "-c", "fsync=off", cwd=folder, env=clean, **who,
                     ready=lambda: socket.create_connection(("127.0.0.1", port)).close()):
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def server(store: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """An MLflow server on the store, which keeps the artifacts; its address."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with process(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--artifacts-destination",
                 str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "2", cwd=folder,
                 env=environment | command.QUIET | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                 ready=lambda: urllib.request.urlopen(f"{url}/health").read()):
        yield url


@pytest.mark.slow
@pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed: no initdb")
@pytest.mark.skipif(not importlib.util.find_spec("psycopg2"), reason="psycopg2 is not installed; PostgreSQL needs it")
def test_eight_writers_on_a_server_with_postgresql_lose_no_version(faults, environment, tmp_path):  # noqa: F811
    (tmp_path / "params.yaml").touch()
    each = 10       # by HTTP a registration takes a second
    with postgres() as store, server(store, tmp_path, environment) as url:
        everything_was_registered(faults(tmp_path, "writers", WRITERS, each, MLFLOW_TRACKING_URI=url), each)


class Lossy:
    """Passes requests on to a server; of each kind the first `request` does not arrive, or its `answer` does not."""

    def __init__(self, upstream: str, lost: str):
        self.lost = lost
        self.upstream = ("127.0.0.1", int(upstream.rpartition(":")[2]))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.dropped: set[str] = set()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.pass_on, args=self.listener.accept()[:1], daemon=True).start()

    def pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError), client.makefile("rb") as lines:
            request = lines.readline()
            head, length = [], 0
            while (line := lines.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
                head += [] if name.lower() == b"connection" else [line]
            body = lines.read(length)
            method, path, _ = request.decode().split(" ", 2)
            kind = f"{method} {re.sub(r'[0-9a-f-]{8,}|[?].*|/[0-9]+', '*', path)}"
            first = kind not in self.dropped
            self.dropped.add(kind)
            if first and self.lost == "request":
                return
            with socket.create_connection(self.upstream) as server:
                server.sendall(request + b"".join(head) + b"Connection: close\r\n\r\n" + body)
                answer = b"".join(iter(lambda: server.recv(65536), b""))
            if first:
                return
            client.sendall(answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))


@pytest.mark.fault(18)
@pytest.mark.slow
@pytest.mark.parametrize("lost", ["request", "answer"])
def test_where_each_call_is_lost_once_there_is_one_run_one_version_and_one_decision(
        finished, tmp_path, environment, inside, monkeypatch, lost):
    shutil.copytree(finished.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".evergreen"))
    project = Project(tmp_path / "copy", environment)
    (tmp_path / "server").mkdir()
    with server(f"sqlite:///{tmp_path}/server/mlflow.db", tmp_path / "server", environment) as url:
        lossy = Lossy(url, lost)
        inside(project)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", lossy.url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
        try:
            made = register.register("sts")
            history.move(tracking.client(), "sts", made.number, "", "promote")
        finally:
            lossy.listener.close()
        assert {kind.rpartition("mlflow/")[2] for kind in lossy.dropped} >= {
            "runs/create", "model-versions/create", "registered-models/create", "experiments/create",
            "registered-models/alias", "runs/update", "runs/log-batch", "runs/search"}
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        found = tracking.client()
        assert [int(v.version) for v in found.search_model_versions("name = 'sts'")] == [made.number]
        run, = found.search_runs([found.get_experiment_by_name("sts").experiment_id])
        assert run.info.run_id == made.run_id and run.info.status == "FINISHED"
        assert register.register("sts") == type(made)("sts", made.number, made.run_id, ["challenger", "champion"])
        log = journal.read(found, "sts")
        assert ([(e.before, e.after, e.state) for e in log.events], log.problems) == ([(None, 1, "done")], [])

        # what a process downloads ends with it, or with the next where it was killed
        look = ("from steps import model_files, tracking; tracking.client(); "
                f"print(model_files.stored('models:/sts/{made.number}'))")
        # no process has so high a number
        killed = project / f".evergreen/downloads/{command.identity().rpartition('-')[0]}-4194305-killed"
        killed.mkdir()
        folder = Path(project.run(sys.executable, "-c", look, MLFLOW_TRACKING_URI=url).stdout.strip())
        assert folder.is_relative_to(project / ".evergreen/downloads") and not folder.exists() and not killed.exists()
