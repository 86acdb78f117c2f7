"""The stack on one machine: who may come in, what is told of it, what it survives, what it leaves. In this order."""

import asyncio
import base64
import http.client
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from infra import keys, postgres, processes, stack
from steps import command
from steps.schema import InputError
from tests.conftest import ROOT, Project
from tests.test_registry_server import BINARIES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed: no initdb")]
WEBHOOK = "/hooks/canaryOfTheWebhook"
OPEN = {"/api/health", "/api/ready", "/health",             # documented: who watches a server asks these
        "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info",      # documented: what a client may ask for
        "/static-files/x"}                                  # the page's own files
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
    notifications.announce(["sts@1 against the base model: PROMOTE"])
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


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found
        found.shutdown()


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


@pytest.fixture(scope="module")
def running(environment, receiver) -> Iterator[Running]:
    """Below /tmp and open to be passed through, because PostgreSQL runs as another user where this one is root."""
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
    project.start()
    try:
        project.started = project.up()
        yield project
    finally:
        project.down()
        shutil.rmtree(folder, ignore_errors=True)


def test_it_says_where_everything_is_and_no_secret(running):
    said = running.started.stdout
    for name, port in running.ports().items():
        assert f"127.0.0.1:{port}" in said, name
    assert said.count("ready after") == 6 and ".stack/secrets/password" in said
    assert [name for name in keys.FILES if running.secret(name) in said] == []
    modes = {name: (running / f".stack/secrets/{name}").stat().st_mode & 0o777 for name in keys.FILES}
    assert modes == dict.fromkeys(keys.FILES, 0o600)


def test_what_it_writes_for_a_shell_opens_every_server(running):
    script = (". .stack/env && python -c '"
              "import os; from infra import stack; from steps import tracking;"
              "print(stack.ask(os.environ[\"PREFECT_API_URL\"] + \"/work_pools/filter\","
              "os.environ[\"PREFECT_API_AUTH_STRING\"].partition(\":\")[2], {})[0][\"name\"]);"
              "print(len(tracking.client().search_experiments()))'")
    assert running.run("bash", "-c", script).stdout.split() == ["cpu", "1"]


# Who may come in


def routes(server: str, tmp_path: Path, environment: dict[str, str]) -> list:
    (tmp_path / "auth.ini").write_text(stack_auth(tmp_path), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.routes", server], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=environment | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path), "_MLFLOW_SGI_NAME": "uvicorn",
                           "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
                           "MLFLOW_AUTH_ADMIN_PASSWORD": "of no server", "MLFLOW_FLASK_SERVER_SECRET_KEY": "none"})
    return [(re.sub(r"<[^>]*>|\{[^}]*\}", "x", path), method)
            for path, methods in json.loads(done.stdout) for method in methods]


def stack_auth(folder: Path) -> str:
    return f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/users.db\nadmin_username = one\n"


def answers(port: int, asked: list, headers: dict) -> list[int]:
    """The status of each request, of which several are on their way at once."""
    def ask(some: list) -> list[int]:
        connection, found = http.client.HTTPConnection("127.0.0.1", port, timeout=30), []
        for path, method in some:
            connection.request(method, path, b"{}" if method in ("POST", "PUT", "PATCH") else None, headers)
            with connection.getresponse() as answer:
                answer.read()
                found.append(answer.status)
        return found

    lanes = 16
    with ThreadPoolExecutor(lanes) as pool:
        parts = list(pool.map(ask, [asked[lane::lanes] for lane in range(lanes)]))
    return [parts[number % lanes][number // lanes] for number in range(len(asked))]


@pytest.mark.parametrize("who", ["nobody", "somebody else"])
@pytest.mark.parametrize("server, least", [("prefect", 150), ("mlflow", 500)])
def test_every_route_refuses(running, tmp_path_factory, environment, server, least, who, known_routes={}):  # noqa: B006
    if server not in known_routes:
        known_routes[server] = routes(server, tmp_path_factory.mktemp(server), environment)
    asked = sorted({(path, method) for path, method in known_routes[server]
                    if path not in OPEN and path and method not in ("WEBSOCKET", "HEAD", "OPTIONS")})
    assert len(asked) > least
    if who == "somebody else":
        asked = asked[::40]     # each costs a hash, and the same code refuses all
    wrong = base64.b64encode(b"evergreen:not the password").decode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Basic {wrong}"} if who != "nobody" else {})
    found = answers(running.ports()[server], asked, headers)
    assert {(route, status) for route, status in zip(asked, found, strict=True) if status != 401} == set()
    if server == "prefect":
        sockets = {path for path, method in known_routes[server] if method == "WEBSOCKET"}
        assert len(sockets) > 3
        for path in sockets:
            assert asyncio.run(socket_ends(running.ports()[server], path, wrong)), path


async def socket_ends(port: int, path: str, token: str) -> bool:
    """Whether the server hangs up on who asks without signing in, and on who signs in wrongly, before it tells them
    anything."""
    import websockets

    for first in ({"type": "filter", "filter": {}}, {"type": "auth", "token": token}):
        for protocols in (None, ["prefect"]):
            try:
                async with websockets.connect(f"ws://127.0.0.1:{port}{path}", subprotocols=protocols, proxy=None) as ws:
                    await ws.send(json.dumps(first))
                    told = await asyncio.wait_for(ws.recv(), 10)
                    if "auth_success" in str(told):
                        return False
                    await asyncio.wait_for(ws.recv(), 10)
                    return False
            except (websockets.InvalidStatus, websockets.InvalidHandshake, websockets.ConnectionClosed):
                pass
    return True


def test_the_remote_lets_in_the_holder_of_the_key_alone(running, tmp_path):
    import asyncssh

    other = asyncssh.generate_private_key("ssh-ed25519")

    async def come_in(**how):
        async with asyncssh.connect("127.0.0.1", running.ports()["sftp"], username=keys.USER, known_hosts=None,
                                    **how) as connection, connection.start_sftp_client() as files:
            return await files.listdir("/")

    for how in ({"client_keys": [other]}, {"client_keys": None, "password": running.secret("password")}):
        with pytest.raises(asyncssh.PermissionDenied):
            asyncio.run(come_in(**how))
    listed = asyncio.run(come_in(client_keys=[str(running / ".stack/secrets/dvc_key")]))
    assert not {"etc", "tmp"} & set(listed)     # nothing above its folder


def test_postgresql_wants_a_password(running):
    import psycopg2

    for password in (None, "wrong"):
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(host="127.0.0.1", port=running.ports()["postgres"], user="prefect", dbname="prefect",
                             password=password, passfile="/dev/null")
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):      # nor in each other's database
        psycopg2.connect(host="127.0.0.1", port=running.ports()["postgres"], user="prefect", dbname="mlflow",
                         password=running.secret("postgres_prefect"))


@pytest.mark.parametrize("server", ["prefect", "mlflow", "sftp"])
def test_no_server_starts_without_its_secret(server, tmp_path, environment):
    (tmp_path / "password").touch()
    done = subprocess.run([sys.executable, "-m", "infra.serve", server, "--host", "0.0.0.0", "--port", "1",
                           "--secrets", tmp_path, "--data", tmp_path / "data"], cwd=ROOT, env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "starts without its secret" in done.stderr and "Traceback" not in done.stderr


def told(evergreen_stack, capsys) -> tuple[int, str]:
    return command.status(stack.main, evergreen_stack), capsys.readouterr().err


def test_a_public_address_needs_a_password_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOST", "0.0.0.0")
    code, said = told(["up"], capsys)
    assert code == 2 and "HOST=0.0.0.0" in said and ".stack/secrets/password" in said
    assert not (tmp_path / ".stack").exists()


def test_without_postgresql_it_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(postgres.shutil, "which", lambda *_, **__: None)
    code, said = told(["up"], capsys)
    assert code == 2 and "apt-get install postgresql" in said and not (tmp_path / ".stack").exists()


# What is told of it


def run_on_worker(running: Running, flow: str, ending: str) -> str:
    """Runs the flow of this test on the CPU worker; its state when it has ended."""
    flow_id = running.prefect("flows/", {"name": flow})["id"]
    clone = str(running / ".stack/workers/cpu")
    deployment = running.prefect("deployments/", {
        "name": "here", "flow_id": flow_id, "entrypoint": "ending.py:retrain", "path": clone, "work_pool_name": "cpu",
        "job_variables": {"working_dir": clone}, "parameter_openapi_schema": {}})["id"]
    run = running.prefect(f"deployments/{deployment}/create_flow_run", {"parameters": {"ending": ending}})["id"]
    return until(lambda: (state := running.prefect(f"flow_runs/{run}")["state_type"]) in (
        "COMPLETED", "FAILED", "CRASHED") and state)


def until(what, seconds: float = 90.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


def test_each_ending_is_told_once(running, receiver):
    assert run_on_worker(running, "retrain", "failed") == "FAILED"
    assert run_on_worker(running, "retrain", "crashed") == "CRASHED"
    assert run_on_worker(running, "retrain", "completed") == "COMPLETED"
    stage = running.prefect("flows/", {"name": "a stage"})["id"]
    for flow_id in (stage, running.prefect("flows/", {"name": "retrain"})["id"]):   # the last comes after all others
        run = running.prefect("flow_runs/", {"flow_id": flow_id})["id"]
        running.prefect(f"flow_runs/{run}/set_state", {"state": {"type": "FAILED", "message": f"of {flow_id}"}})
    until(lambda: len(receiver.told) > 3)
    starts = sorted(text.partition("\n")[0] for text in receiver.told)
    assert [start.partition(":")[0] for start in starts] == [
        "retraining crashed", "retraining failed", "retraining failed", "sts@1 against the base model"]
    assert sum("the column score is missing" in text for text in receiver.told) == 1
    assert sum(f"of {flow_id}" in text for text in receiver.told) == 1
    assert all("/runs/flow-run/" in text for text in receiver.told)


def test_a_run_leaves_its_files_in_the_stack(running):
    assert [path.read_text() for path in (running / ".stack/mlflow/artifacts").rglob("note.txt")] == ["an artifact"]
    assert [path.read_text() for path in (running / ".stack/sftp/store").rglob("*") if path.is_file()] == ["made here"]
    assert (running / ".stack/workers/cpu/.dvc/cache").is_dir()
    assert not (running / ".stack/workers/gpu/.dvc/cache").exists() and not (running / ".dvc/cache").exists()


def test_the_server_takes_the_pools_of_kubernetes(running):
    for pool in ("cpu", "gpu"):
        template = json.loads((ROOT / f"infra/kubernetes/pool-{pool}.json").read_text(encoding="utf-8"))
        made = running.prefect("work_pools/", {"name": f"kubernetes-{pool}", "type": "kubernetes",
                                               "base_job_template": template})
        assert made["base_job_template"] == template


# What it survives


def test_a_second_start_changes_nothing(running):
    before = {part: running.part(part).record.read_text() for part in ("postgres", "prefect", "mlflow", "worker-cpu")}
    assert running.up().stdout.startswith("the stack already runs")
    assert {part: running.part(part).record.read_text() for part in before} == before


def test_the_killed_come_back_with_all_they_kept(running):
    runs = len(running.prefect("flow_runs/filter", {}))
    for name in ("worker-cpu", "prefect", "mlflow"):
        running.part(name).leader().kill()      # MLflow's own workers live on and hold its port
    said = running.up().stdout
    assert [line.partition(":")[0] for line in said.splitlines() if "ready after" in line] == [
        "prefect", "mlflow", "worker cpu"]
    assert len(running.prefect("flow_runs/filter", {})) == runs
    running.part("postgres").leader().kill()
    assert "PostgreSQL: ready after" in running.up().stdout

    def both_answer() -> bool:
        try:
            experiments = stack.ask(f"http://127.0.0.1:{running.ports()['mlflow']}/api/2.0/mlflow/experiments/search",
                                    running.secret("password"), {"max_results": 5})["experiments"]
            return len(experiments) == 2 and len(running.prefect("flow_runs/filter", {})) == runs
        except urllib.error.HTTPError:      # of a connection that the killed server cut
            return False

    until(both_answer, 30)


# What it leaves


def test_a_secret_stands_in_no_log_command_line_parameter_or_database(running):
    """But in the block that Prefect encrypts, and MLflow's hash."""
    hidden = {name: running.secret(name) for name in keys.FILES} | {"webhook": WEBHOOK}
    hidden |= {name: text.splitlines()[2] for name, text in hidden.items() if name.startswith("dvc")}
    places = {path.name: path.read_text(errors="replace") for path in (running / ".stack/logs").iterdir()}
    assert len(places) == 6 and all(places[name] for name in ("prefect.log", "mlflow.log", "worker-cpu.log"))
    places |= {f"process {p.pid}": " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])}
    for name in ("prefect", "mlflow"):
        dump = running.run(str(BINARIES[0] / "pg_dump"), "--host", "127.0.0.1", "--port",
                           str(running.ports()["postgres"]), "--username", name, name,
                           PGPASSWORD=running.secret(f"postgres_{name}")).stdout
        assert "CREATE TABLE" in dump
        places[f"database {name}"] = dump
    found = [(place, name) for place, text in places.items() for name, secret in hidden.items() if secret in text]
    assert found == []


def test_the_stop_ends_every_process_and_keeps_the_data(running):
    leaders = [running.part(part.stem).leader().pid for part in (running / ".stack/pids").iterdir()]
    assert len(leaders) == 6
    assert "the data stay" in running.down()
    assert not any(psutil.pid_exists(pid) for pid in leaders)
    assert [p for p in psutil.process_iter() if str(running.folder) in mark(p)] == []
    assert (running / ".stack/postgres/data/PG_VERSION").exists()
    assert running.down() == "the stack does not run\n"


def mark(process: psutil.Process) -> str:
    try:
        return process.environ().get(processes.MARK, "") + " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_process_that_got_the_number_of_another_is_left_alone(tmp_path):
    part = processes.Part(tmp_path, "sleeper")
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        part.record.parent.mkdir()
        part.record.write_text(json.dumps({"pid": stranger.pid, "started": "another boot 1"}), encoding="utf-8")
        assert part.leader() is None and part.stop() is False
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_part_ends_with_children_that_left_it(tmp_path):
    part = processes.Part(tmp_path, "parent")
    part.start(["bash", "-c", "setsid sleep 60 & exec sleep 60"], dict(os.environ))
    until(lambda: len(part.family()) == 2)
    family = part.family()
    part.leader().kill()
    until(lambda: part.leader() is None)
    assert part.stop() is True
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_wrong_password_file_is_refused(tmp_path):
    for text, why in (("", "is empty"), ("short", "at least 12"), ("with:a colon in it", "no colon")):
        (tmp_path / "password").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=why):
            keys.read(tmp_path, "password")
