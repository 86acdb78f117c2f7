"""A schedule on a real Prefect server makes runs: newer fastapi and SQLAlchemy break that, some silently."""

import contextlib
import importlib.metadata
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import psutil
import pytest

from tests.waiting import until

FLOW = """
from prefect import flow

@flow
def tick():
    print("tick")

if __name__ == "__main__":
    tick.serve("ticking", interval=4)
"""


@pytest.mark.parametrize("package, below", [("fastapi", (0, 151)), ("SQLAlchemy", (2, 1))])
def test_the_installed_version_is_one_that_prefect_works_with(package, below):
    assert tuple(map(int, importlib.metadata.version(package).split(".")[:2])) < below


def ask(url: str, **body):
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None,
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@contextlib.contextmanager
def started(*command: str, **options) -> Iterator[subprocess.Popen]:
    """A process that is ended with all its children."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, **options)
    try:
        yield process
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, timeout=10)
        process.wait(10)


@pytest.mark.fault(30)
def test_a_schedule_makes_runs_and_they_complete(environment, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    settings = environment | {
        "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_UI_ENABLED": "false", "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    (tmp_path / "ticking.py").write_text(FLOW, encoding="utf-8")
    log = tmp_path / "log"

    def completed() -> list[dict]:
        runs = ask(f"{api}/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}})
        return [run for run in runs if run["auto_scheduled"]]

    with open(log, "w") as said, started(
            sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port),
            cwd=tmp_path, env=settings, stdout=said):
        until(lambda: ask(f"{api}/health"), 90, log.read_text)
        with started(sys.executable, "ticking.py", cwd=tmp_path, env=settings | {"PREFECT_API_URL": api}, stdout=said):
            assert until(completed, 90, log.read_text)[0]["start_time"]
