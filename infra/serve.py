"""One server of the stack, which asks everybody who they are: Prefect, MLflow, or the SFTP server of DVC's remote.

python -m infra.serve prefect|mlflow|sftp --host HOST --port PORT --database HOST:PORT --secrets FOLDER --data FOLDER

The secrets are files and reach the servers by the environment: a command line is everybody's to read. Without its
secret no server starts, on whatever address (exit status 2).
"""

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from infra import keys
from steps import command

AUTH = """[mlflow]
default_permission = READ
database_uri = postgresql://mlflow@{database}/mlflow
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="infra.serve", description=__doc__.splitlines()[0])
    parser.add_argument("server", choices=("prefect", "mlflow", "sftp"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", required=True)
    parser.add_argument("--database", default="127.0.0.1:5432", help="PostgreSQL (127.0.0.1:5432)")
    parser.add_argument("--secrets", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--names", default="", help="more addresses, with ports, by which MLflow is called: a,b")
    options = parser.parse_args(arguments)
    options.data.mkdir(parents=True, exist_ok=True)
    {"prefect": prefect, "mlflow": mlflow, "sftp": sftp}[options.server](options)


def prefect(options: argparse.Namespace) -> None:
    become(["prefect", "server", "start", "--host", options.host, "--port", options.port], {
        "PREFECT_HOME": str(options.data.absolute()),
        "PREFECT_UI_URL": os.environ.get("PREFECT_UI_URL") or f"http://{options.host}:{options.port}",    # in messages
        "PREFECT_UI_STATIC_DIRECTORY": str(options.data.absolute() / "ui"),
        "PREFECT_SERVER_API_AUTH_STRING": f"{keys.USER}:{keys.read(options.secrets, 'password')}",
        "PREFECT_SERVER_ENCRYPTION_KEY": keys.read(options.secrets, "prefect_encryption_key"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://prefect@{options.database}/prefect",
        "PGPASSWORD": keys.read(options.secrets, "postgres_prefect"),
    })


def mlflow(options: argparse.Namespace) -> None:
    config = options.data.absolute() / "auth.ini"
    config.write_text(AUTH.format(database=options.database, user=keys.USER), encoding="utf-8")
    hosts = ("127.0.0.1", "localhost", options.host, *(addresses() if options.host == "0.0.0.0" else ()))
    names = [f"{host}:{options.port}" for host in hosts] + options.names.split(",")
    become(["mlflow", "server", "--app-name", "basic-auth", "--host", options.host, "--port", options.port,
            "--workers", "2", "--serve-artifacts", "--allowed-hosts", ",".join(dict.fromkeys(filter(None, names)))], {
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://mlflow@{options.database}/mlflow",
        "MLFLOW_ARTIFACTS_DESTINATION": str(options.data.absolute() / "artifacts"),
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": keys.read(options.secrets, "password"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": keys.read(options.secrets, "mlflow_session_key"),
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",            # a route without a rule is nobody's
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",      # half a gigabyte of workers for what is not used here
        "PGPASSWORD": keys.read(options.secrets, "postgres_mlflow"),
    })


def addresses() -> list[str]:
    """By what else than its loopback this machine is called."""
    found = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries
             if entry.family == socket.AF_INET]
    return [socket.gethostname(), socket.getfqdn(), *found]


def become(module: list[str], environment: dict[str, str]) -> None:
    os.environ.update(command.QUIET | environment)
    os.execv(sys.executable, [sys.executable, "-m", *module])


def sftp(options: argparse.Namespace) -> None:
    """Files alone, below the folder alone, to the holder of the one key."""
    import asyncio

    import asyncssh

    key = asyncssh.import_private_key(keys.read(options.secrets, "dvc_key"))
    known = asyncssh.import_authorized_keys(key.export_public_key().decode())
    host_key = asyncssh.import_private_key(keys.read(options.secrets, "dvc_host_key"))

    async def serve() -> None:
        server = await asyncssh.listen(
            options.host, int(options.port), server_host_keys=[host_key], authorized_client_keys=known,
            password_auth=False, kbdint_auth=False, allow_scp=False,
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(options.data.absolute()).encode()))
        await server.wait_closed()

    asyncio.run(serve())


if __name__ == "__main__":
    command.unblock()
    sys.exit(command.status(main, sys.argv[1:]))
