"""A Prefect server, the machine in charge and a GPU worker, each of these with a clone of a small project."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from tests.project import Project, make_project
from tests.waiting import until

LENIENT = {"margin": -2.0, "floor": -1.0, "min_rows": 1, "slices": {}, "tolerance": 1.0,
           "approval": {"policy": "ask", "hours": 1.0}}


class Fleet:
    """`head` is the clone in charge, `gpu` the one that trains. Everything is ended by close()."""

    def __init__(self, folder: Path, tiny_model: Path, environment: dict[str, str]):
        self.folder, self.started = folder, {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"
        quiet = {"PREFECT_SERVER_UI_ENABLED": "false", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                 "DO_NOT_TRACK": "true", "PREFECT_WORKER_QUERY_SECONDS": "2"}
        self.server_environment = environment | quiet | {"PREFECT_HOME": str(folder / "prefect")}
        self.start_server()
        self.head = make_project(folder / "head", tiny_model, environment | quiet | {"PREFECT_API_URL": self.api})
        self.head.edit("recipes.sts.schedule", {"cron": "0 2 * * *", "timezone": "Europe/Paris"})
        self.head.change(lambda values: values["recipes"]["sts"]["gate"].update(LENIENT))
        self.gpu = Project(folder / "gpu", self.head.environment)
        self.commit("Schedule")
        self.head.git("clone", "-q", ".", str(self.gpu.folder))
        for clone in (self.head, self.gpu):
            clone.dvc("remote", "add", "--quiet", "--local", "--default", "store", str(folder / "store"))
        self.poll(lambda: self.ask("/health"), 90)

    def start(self, name: str, *arguments: str, cwd: Path, env: dict[str, str]) -> None:
        """Starts Python with these arguments; what it says is in the file `name`."""
        with open(self.folder / f"{name}.log", "a") as said:
            self.started[name] = subprocess.Popen(
                [sys.executable, *arguments], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=said,
                stderr=subprocess.STDOUT, start_new_session=True)

    def start_server(self) -> None:
        self.start("server", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port),
                   cwd=self.folder, env=self.server_environment)

    def start_workers(self, *names: str) -> None:
        for name, clone in (("cpu", self.head), ("gpu", self.gpu)):
            if name in (names or ("cpu", "gpu")):
                self.start(name, "-m", "flows.cli", "worker", name, cwd=clone.folder, env=clone.environment)
        self.poll(lambda: {pool["status"] for pool in self.ask("/work_pools/filter", limit=50)} == {"READY"}, 90)

    def commit(self, message: str) -> None:
        """Commits the head's files; the other clone follows."""
        self.head.git("commit", "-qam", message)
        if self.gpu.folder.exists():
            self.gpu.git("pull", "-q")

    def ask(self, path: str, **body):
        """What the server's API answers to a GET, or to a POST of `body`; asked again while it is too busy."""
        request = urllib.request.Request(self.api + path, json.dumps(body).encode() if body else None,
                                         {"Content-Type": "application/json"})
        for wait in (1, 2, 4, 8, None):
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code != 503 or wait is None:
                    raise
                time.sleep(wait)

    def deployments(self) -> dict[str, dict]:
        return {found["name"]: found for found in self.ask("/deployments/filter", limit=50)}

    def begin(self) -> str:
        """Asks for a run of retrain/sts; returns its id."""
        wanted = self.ask("/deployments/name/retrain/sts")["id"]
        return self.ask(f"/deployments/{wanted}/create_flow_run", state={"type": "SCHEDULED"})["id"]

    def state(self, run: str) -> dict:
        return self.ask(f"/flow_runs/{run}")["state"]

    def until(self, run: str, *types: str, seconds: float = 180) -> dict:
        """The run's state once it is of one of these types."""
        return self.poll(lambda: (now := self.state(run))["type"] in types and now, seconds)

    def stage_run(self, name: str, seconds: float = 90) -> str:
        """The id of the newest run on the GPU's pool, once it is of this name's beginning."""
        def newest():
            found = [run for run in self.ask("/flow_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=50)
                     if run["name"].startswith(name)]
            return found and found[0]["id"]
        return self.poll(newest, seconds)

    def logs(self, *runs: str) -> str:
        found = self.ask("/logs/filter", logs={"flow_run_id": {"any_": list(runs)}}, sort="TIMESTAMP_ASC", limit=200)
        return "\n".join(line["message"] for line in found)

    def tasks(self, run: str) -> dict[str, str]:
        found = self.ask("/task_runs/filter", task_runs={"flow_run_id": {"any_": [run]}})
        return {task["name"]: task["state"]["type"] for task in found}

    def processes(self, word: str) -> list[psutil.Process]:
        """Those in the two clones whose command has this word."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if Path(process.cwd()) in (self.head.folder, self.gpu.folder) and any(
                        word in part for part in process.cmdline()):
                    found.append(process)
        return found

    def poll(self, what, seconds: float):
        return until(what, seconds, lambda: "\n".join(log.read_text()[-3000:] for log in self.folder.glob("*.log")))

    def kill(self, *names: str) -> None:
        """kill -9 of these and of all that they started, at once."""
        family = [process for name in names if self.started[name].poll() is None
                  for process in (*psutil.Process(self.started[name].pid).children(recursive=True),
                                  psutil.Process(self.started[name].pid))]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)
        for name in names:
            self.started[name].wait(10)

    def close(self) -> None:
        self.kill(*self.started)
