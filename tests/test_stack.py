"""The stack on one machine: who may come in, what is told of it, what it survives, what it leaves. In this order."""

import asyncio
import base64
import http.client
import http.server
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from infra import keys, stack
from tests.project import ROOT
from tests.running import WEBHOOK, Running, mark, needs_postgresql, started_stack
from tests.test_registry_server import BINARIES
from tests.waiting import until

pytestmark = [pytest.mark.slow, needs_postgresql]
OPEN = {"/api/health", "/api/ready", "/health",             # documented: who watches a server asks these
        "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info",      # documented: what a client may ask for
        "/static-files/x"}                                  # the page's own files
DESCRIBED = ("/ui-settings", "/docs", "/redoc", "/openapi.json")    # documented: Prefect's page and its interface
@pytest.fixture(scope="module")
def running(environment, receiver) -> Iterator[Running]:
    with started_stack(environment, receiver) as found:
        yield found


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
    script = ". .stack/env && export MLFLOW_TRACKING_PASSWORD=not-this-one && python -m flows.cli history sts"
    done = running.run("bash", "-c", script, check=False)
    assert done.returncode == 2 and "not-this-one" not in done.stderr
    assert "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to whom it lets in" in done.stderr


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
                    if path and path not in OPEN and not path.startswith(DESCRIBED)
                    and method not in ("WEBSOCKET", "HEAD", "OPTIONS")})
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


def test_what_is_open_holds_no_data(running):
    for path in DESCRIBED:
        connection = http.client.HTTPConnection("127.0.0.1", running.ports()["prefect"], timeout=30)
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        assert len(text) > 100
        assert [word for word in ("retrain", "evergreen", *map(running.secret, keys.FILES)) if word in text] == []


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


# What is told of it


def test_each_ending_is_told_once(running, receiver):
    assert running.on_worker("retrain", "failed") == "FAILED"
    assert running.on_worker("retrain", "crashed") == "CRASHED"
    assert running.on_worker("retrain", "completed") == "COMPLETED"
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
        experiments = stack.ask(f"http://127.0.0.1:{running.ports()['mlflow']}/api/2.0/mlflow/experiments/search",
                                running.secret("password"), {"max_results": 5})["experiments"]
        return len(experiments) == 2 and len(running.prefect("flow_runs/filter", {})) == runs

    until(both_answer, 30)      # at first with errors of connections that the killed server cut


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
