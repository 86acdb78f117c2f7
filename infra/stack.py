"""The production stack on one machine: PostgreSQL, Prefect, MLflow, DVC's remote, a worker of each pool.

python -m infra.stack up|down

All state is in .stack/. The environment may say HOST (127.0.0.1), POSTGRES_PORT, PREFECT_PORT, MLFLOW_PORT, SFTP_PORT
(each a free one) and EVERGREEN_WEBHOOK (nobody is told). A second `up` starts what does not run and leaves the rest.
"""

import base64
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from infra import databases, keys, postgres, work
from infra.processes import Part, wait
from steps import command
from steps.schema import InputError

STACK = Path(".stack")
POOLS = ("cpu", "gpu")
LOOPBACK = ("127.0.0.1", "localhost")
NEEDED = {"psycopg2": "psycopg2-binary", "flask_wtf": "mlflow[auth]", "dvc_ssh": "dvc-ssh"}


class Stack:
    """Where everything is; the parts in the order in which they start."""

    def __init__(self):
        self.folder = STACK.absolute()
        self.secrets = self.folder / "secrets"
        self.host = os.environ.get("HOST", "127.0.0.1")
        self.here = "127.0.0.1" if self.host in ("0.0.0.0", "localhost") else self.host     # as clients here call it
        self.postgres = Part(self.folder, "postgres", signal.SIGINT)    # SIGTERM would wait for who is connected
        self.servers = {name: Part(self.folder, name) for name in ("prefect", "mlflow", "sftp")}
        self.workers = {pool: Part(self.folder, f"worker-{pool}") for pool in POOLS}
        self.ports: dict[str, int] = {}

    def stop(self) -> list[str]:
        """Ends all parts, those that need others first; the names of those that ran."""
        ended = []
        with ThreadPoolExecutor() as beside:
            for parts in (self.workers.values(), self.servers.values(), [self.postgres]):
                ended += [part.name for part, ran in zip(parts, beside.map(Part.stop, parts), strict=True) if ran]
        return ended

    def choose_ports(self) -> None:
        """Those of the environment, else those of before, else free ones; kept, so that addresses stay."""
        kept = self.folder / "addresses.json"
        known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"host": self.host, "ports": {}}
        if known["host"] != self.host and any(part.leader() for part in self.servers.values()):
            raise InputError(f"the stack runs on {known['host']}; to move it to {self.host}, first: make stack-down")
        before = known["ports"]
        for part in (self.postgres, *self.servers.values()):
            wanted = os.environ.get(f"{part.name.upper()}_PORT") or before.get(part.name)
            with socket.socket() as found:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if not part.leader():
                    part.stop()     # what a killed one left holds its port
                    try:
                        found.bind((self.here, int(wanted or 0)))
                    except (OSError, ValueError, OverflowError) as error:
                        raise InputError(f"port {wanted} for {part.name} cannot be had ({error}); say another one: "
                                         f"{part.name.upper()}_PORT=... make stack") from None
                    wanted = found.getsockname()[1]
            self.ports[part.name] = int(wanted)
        kept.write_text(json.dumps({"host": self.host, "ports": self.ports}), encoding="utf-8")

    def url(self, name: str) -> str:
        return f"http://{self.here}:{self.ports[name]}"

    def remote(self) -> str:
        return f"{self.here}:{self.ports['sftp']}"

    def client(self, password: str | None = None) -> dict[str, str]:
        """What a client here has in its environment, by default with the password itself."""
        return work.environment(self.url("prefect"), self.url("mlflow"), self.folder / "dvc",
                                password or keys.read(self.secrets, "password"))

    def prefect_api(self, path: str, body: dict | None = None):
        return ask(f"{self.url('prefect')}/api/{path}", keys.read(self.secrets, "password"), body)


def ask(url: str, password: str | None = None, body: dict | None = None):
    """The JSON, or None, that a server answers; its status is in the OSError that is raised for a refusal."""
    headers = {"Content-Type": "application/json"}
    if password:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{keys.USER}:{password}".encode()).decode()
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        text = answer.read()
    return json.loads(text) if text[:1] in (b"{", b"[") else None


def up() -> None:
    stack = Stack()
    check(stack)
    os.umask(0o077)
    stack.folder.mkdir(exist_ok=True)
    if os.getuid() == 0:
        stack.folder.chmod(0o711)       # the user postgres passes through
    with command.only_one(stack.folder / "up", "this stack"):
        keys.make(stack.secrets)
        keys.read(stack.secrets, "password")
        stack.choose_ports()
        if all([start_postgres(stack), start_servers(stack), start_workers(stack)]):
            say("the stack already runs")
        write_environment(stack)
        deploy(stack)
    say(f"""
Prefect     {stack.url('prefect')}
MLflow      {stack.url('mlflow')}
            sign in as {keys.USER}; the password is in {STACK}/secrets/password
PostgreSQL  127.0.0.1:{stack.ports['postgres']}
DVC remote  sftp://{stack.remote()}, its files in {STACK}/sftp
workers     {', '.join(f'{pool} in {STACK}/workers/{pool}' for pool in POOLS)}
logs        {STACK}/logs

To use it from a shell:  . {STACK}/env
To stop it:              make stack-down""")


def check(stack: Stack) -> None:
    """Raises InputError for what would stop the stack from starting."""
    if missing := [package for module, package in NEEDED.items() if not importlib.util.find_spec(module)]:
        raise InputError(f"{', '.join(missing)} is not installed; make setup")
    if stack.host not in LOOPBACK:
        if not (stack.secrets / "password").exists():
            raise InputError(f"HOST={stack.host} is an address that others reach, and there is no password yet; write "
                             f"one of at least {keys.SHORTEST} characters to {STACK}/secrets/password (mode 600), or "
                             "have one made by a first make stack without HOST")
        say(f"note: {stack.host} speaks plain HTTP; put a proxy with TLS before it where the network is not yours")
    if command_output("git", "status", "--porcelain", "--untracked-files=no"):
        say("note: tracked files differ from the last commit, which is what the workers have")
    postgres.programs()
    postgres.user(stack.folder)
    if command_output("git", "rev-parse", "--verify", "--quiet", "HEAD") is None:
        raise InputError("the workers are clones of the last commit, and there is none here; first: git commit")


def command_output(*words: str, cwd: Path | None = None) -> str | None:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def start_postgres(stack: Stack) -> bool:
    """With its databases. Says whether it ran already."""
    ran, data = stack.postgres.leader() is not None, stack.folder / "postgres"
    address = f"127.0.0.1:{stack.ports['postgres']}"
    if not data.exists():
        say("PostgreSQL: making its cluster")
        postgres.make(data, keys.read(stack.secrets, "postgres"))
    if not ran:
        postgres.start(stack.postgres, data, stack.ports["postgres"])
    ready(stack.postgres, "PostgreSQL", address, lambda: databases.make(address, stack.secrets) is None, quiet=ran)
    return ran


def start_servers(stack: Stack) -> bool:
    """Prefect, MLflow and the SFTP server side by side. Says whether all ran already."""
    def health(name: str) -> bool:
        ask(f"{stack.url(name)}/{'api/health' if name == 'prefect' else 'health'}")
        return True

    checks = {"prefect": lambda: health("prefect"), "mlflow": lambda: health("mlflow"),
              "sftp": lambda: not socket.create_connection((stack.here, stack.ports["sftp"]), 5).close()}
    started = [name for name, part in stack.servers.items() if not part.leader()]
    for name in started:
        stack.servers[name].start(
            [sys.executable, "-m", "infra.serve", name, "--host", stack.host, "--port", str(stack.ports[name]),
             "--database", f"127.0.0.1:{stack.ports['postgres']}", "--secrets", str(stack.secrets),
             "--data", str(stack.folder / name)], inherited())
    for name, part in stack.servers.items():
        ready(part, name, stack.url(name) if name != "sftp" else stack.remote(), checks[name],
              quiet=name not in started)
    refuse_open_doors(stack)
    return not started


def inherited() -> dict[str, str]:
    """The environment of servers and workers, which have no need to know whom Prefect tells."""
    return {name: value for name, value in os.environ.items() if name != "EVERGREEN_WEBHOOK"}


def refuse_open_doors(stack: Stack) -> None:
    """Ends the servers if one of them answers who did not say who they are."""
    for name, path in (("prefect", "api/admin/version"), ("mlflow", "api/2.0/mlflow/users/current")):
        try:
            ask(f"{stack.url(name)}/{path}")
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                continue
        stack.stop()
        raise RuntimeError(f"{name} did not refuse a request without a password; the stack was stopped")


def start_workers(stack: Stack) -> bool:
    """Each in a clone at HEAD with a cache of its own; one that is idle follows HEAD. Says whether all ran already."""
    head, ran = command_output("git", "rev-parse", "HEAD"), True
    for pool in POOLS:
        part, clone = stack.workers[pool], stack.folder / "workers" / pool
        if not (clone / ".git").exists():
            shutil.rmtree(clone, ignore_errors=True)
            subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
        if leader := part.leader():
            if command_output("git", "rev-parse", "HEAD", cwd=clone) == head:
                continue
            if leader.children():
                say(f"worker {pool}: works, and stays at its commit; make stack again when it is done")
                continue
            part.stop()
        ran = False
        subprocess.run(["git", "fetch", "--quiet", os.getcwd(), head], cwd=clone, check=True)
        subprocess.run(["git", "checkout", "--quiet", "--force", "--detach", head], cwd=clone, check=True)
        part.start([sys.executable, "-m", "infra.work", pool, "--prefect", stack.url("prefect"), "--mlflow",
                    stack.url("mlflow"), "--remote", stack.remote(), "--secrets", str(stack.secrets), "--data",
                    str(clone / ".evergreen/worker")], inherited() | {"PYTHONPATH": str(clone)}, cwd=clone)
        began = datetime.now(UTC).isoformat()
        ready(part, f"worker {pool}", f"at commit {head[:7]}", lambda pool=pool, began=began: any(
            worker["last_heartbeat_time"] > began
            for worker in stack.prefect_api(f"work_pools/{pool}/workers/filter", {})))
    return ran


def write_environment(stack: Stack) -> None:
    """Leaves what a shell needs: the password stands there as its file."""
    work.write_remote(stack.folder / "dvc", stack.remote(), stack.secrets)
    (stack.folder / "env").write_text("".join(
        f'export {name}="{value}"\n' for name, value in stack.client(f"$(cat '{stack.secrets}/password')").items()),
        encoding="utf-8")


def deploy(stack: Stack) -> None:
    """What runs on the stack: deployments of params.yaml and notifications, both brought up to date."""
    variables = os.environ | command.QUIET | stack.client()
    subprocess.run([sys.executable, "-m", "flows.cli", "deploy"], env=variables, check=True)
    if os.environ.get("EVERGREEN_WEBHOOK"):
        subprocess.run([sys.executable, "-m", "flows.notifications"], env=variables, check=True)


def ready(part: Part, name: str, where: str, check, quiet: bool = False) -> None:
    seconds = wait(name, check, part)
    if not quiet:
        say(f"{name}: ready after {seconds:.0f} s, {where}")


def down() -> None:
    """Ends what `up` started and leaves the data."""
    if not STACK.exists():
        say("the stack does not run")
        return
    stack = Stack()
    with command.only_one(stack.folder / "up", "this stack"):
        ended = stack.stop()
    say(f"stopped: {', '.join(ended)}; the data stay in {STACK}" if ended else "the stack does not run")


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str]) -> int:
    if arguments not in (["up"], ["down"]):
        raise InputError("say up or down: python -m infra.stack up")
    try:
        {"up": up, "down": down}[arguments[0]]()
    except (TimeoutError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command.unblock()
    sys.exit(command.status(main, sys.argv[1:]))
