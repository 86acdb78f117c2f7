"""A project with its stack, a flow for its workers, and a receiver of what the stack tells."""

import contextlib
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra import keys, processes, stack
from tests.project import ROOT, Project
from tests.test_registry_server import BINARIES
from tests.waiting import until

WEBHOOK = "/hooks/canaryOfTheWebhook"
FLOW = """
import os
import subprocess
from pathlib import Path

from prefect import flow

from flows import notifications
from steps import tracking


@flow(name="retrain")
def retrain(ending: str):
    if ending == "failed":
        raise ValueError("the column score is missing")
    if ending == "crashed":
        os.kill(os.getpid(), 9)
    found = tracking.client()
    run = found.create_run(tracking.experiment(found, "sts")).info.run_id
    found.log_text(run, "an artifact", "note.txt")
    Path("made.txt").write_text("made here")
    for step in (["add", "--quiet", "made.txt"], ["push", "--quiet", "made.txt"]):
        subprocess.run(["dvc", *step], check=True)
    notifications.announce(notifications.VERDICT, ["sts@1 against the base model: PROMOTE"])
"""


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self):
        self.told: list[str] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                assert self.path == WEBHOOK
                receiver.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


needs_postgresql = pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed: no initdb")


class Running(Project):
    """A project with its stack."""

    def up(self, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "infra.stack", "up", check=check, **variables)

    def down(self) -> str:
        return self.run(sys.executable, "-m", "infra.stack", "down").stdout

    def ports(self) -> dict[str, int]:
        return json.loads((self / ".stack/addresses.json").read_text(encoding="utf-8"))["ports"]

    def prefect(self, path: str, body: dict | None = None):
        return stack.ask(f"http://127.0.0.1:{self.ports()['prefect']}/api/{path}", self.secret("password"), body)

    def secret(self, name: str) -> str:
        return keys.read(self / ".stack/secrets", name)

    def part(self, name: str) -> processes.Part:
        return processes.Part(self / ".stack", name)

    def on_worker(self, flow: str, ending: str) -> str:
        """Runs the flow FLOW on the CPU worker; its state when it has ended."""
        flow_id = self.prefect("flows/", {"name": flow})["id"]
        clone = str(self / ".stack/workers/cpu")
        deployment = self.prefect("deployments/", {
            "name": "here", "flow_id": flow_id, "entrypoint": "ending.py:retrain", "path": clone,
            "work_pool_name": "cpu", "job_variables": {"working_dir": clone}, "parameter_openapi_schema": {}})["id"]
        run = self.prefect(f"deployments/{deployment}/create_flow_run", {"parameters": {"ending": ending}})["id"]
        return until(lambda: (state := self.prefect(f"flow_runs/{run}")["state_type"]) in (
            "COMPLETED", "FAILED", "CRASHED") and state)


@contextlib.contextmanager
def started_stack(environment: dict[str, str], receiver: Receiver,
                  change: Callable[[Running], None] = lambda project: None) -> Iterator[Running]:
    """Below /tmp and open to be passed through, because PostgreSQL runs as another user where this one is root.

    `change` works on the project before its first commit.
    """
    folder = Path(tempfile.mkdtemp(prefix="stack-"))
    folder.chmod(0o711)
    project = Running(folder / "project", environment | {
        "PYTHONPATH": str(folder / "project"), "NO_PROXY": "*", "no_proxy": "*",
        "EVERGREEN_WEBHOOK": f"http://127.0.0.1:{receiver.server_port}{WEBHOOK}"})
    listed = subprocess.check_output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT)
    for name in listed.decode().split("\0")[:-1]:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    (project / "ending.py").write_text(FLOW, encoding="utf-8")
    change(project)
    project.start()
    try:
        project.started = project.up()
        yield project
    finally:
        project.down()
        shutil.rmtree(folder, ignore_errors=True)


def mark(process: psutil.Process) -> str:
    try:
        return process.environ().get(processes.MARK, "") + " ".join(process.cmdline())
    except psutil.Error:
        return ""
