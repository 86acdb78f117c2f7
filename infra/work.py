"""A work pool's name -> this process is its worker, signed in to Prefect, MLflow and DVC's remote.

python -m infra.work POOL --prefect URL --mlflow URL --remote HOST:PORT --secrets FOLDER --data FOLDER
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from infra import keys
from steps import command

REMOTE = """[core]
    remote = stack
['remote "stack"']
    url = ssh://{address}/store
    user = {user}
    keyfile = {secrets}/dvc_key
"""


def environment(prefect: str, mlflow: str, data: Path, password: str) -> dict[str, str]:
    """What a client of the stack has in its environment."""
    return {"PREFECT_API_URL": f"{prefect}/api", "PREFECT_API_AUTH_STRING": f"{keys.USER}:{password}",
            "MLFLOW_TRACKING_URI": mlflow, "MLFLOW_TRACKING_USERNAME": keys.USER, "MLFLOW_TRACKING_PASSWORD": password,
            "DVC_SYSTEM_CONFIG_DIR": str(data)}     # the lowest: a project's own remote goes before it


def write_remote(data: Path, address: str, secrets: Path) -> None:
    """Names DVC's remote in the folder that DVC_SYSTEM_CONFIG_DIR says."""
    data.mkdir(parents=True, exist_ok=True)
    (data / "config").write_text(REMOTE.format(address=address, user=keys.USER, secrets=secrets), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="infra.work", description=__doc__.splitlines()[0])
    parser.add_argument("pool")
    for address in ("--prefect", "--mlflow", "--remote"):
        parser.add_argument(address, required=True)
    for folder in ("--secrets", "--data"):
        parser.add_argument(folder, type=Path, required=True)
    parser.add_argument("--deploy", action="store_true", help="first bring the server's deployments up to date")
    parser.add_argument("--health", action="store_true", help="say at port 8080, /health, whether it lives")
    options = parser.parse_args(arguments)
    data, secrets = options.data.absolute(), options.secrets.absolute()
    write_remote(data, options.remote, secrets)
    os.environ.update(command.QUIET | environment(options.prefect, options.mlflow, data,
                                                  keys.read(secrets, "password")) | {
        "PREFECT_HOME": str(data / "prefect"), "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PYTHONPATH": os.getcwd(),      # runs work in this clone, with its code
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"})
    deploy = [sys.executable, "-m", "flows.cli", "deploy"]
    if options.deploy and (code := subprocess.run(deploy, check=False).returncode):
        sys.exit(code)
    os.execv(sys.executable, [sys.executable, "-m", "flows.cli", "worker", options.pool,
                              *(["--health"] if options.health else [])])


if __name__ == "__main__":
    command.unblock()
    sys.exit(command.status(main, sys.argv[1:]))
