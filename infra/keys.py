"""A folder -> the stack's secrets in it, one a file that its owner alone reads; those that are there stay.

python -m infra.keys FOLDER
"""

import os
import secrets
import sys
from pathlib import Path

from steps.schema import InputError

USER = "evergreen"          # who signs in to Prefect and MLflow
SHORTEST = 12               # characters of a password that somebody chose
FILES = ("password", "mlflow_session_key", "prefect_encryption_key", "postgres", "postgres_prefect", "postgres_mlflow",
         "dvc_key", "dvc_host_key")


def make(folder: Path) -> None:
    """Makes what is missing."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in FILES:
        if not (folder / name).exists():
            write(folder / name, generate(name))


def generate(name: str) -> bytes:
    if name.startswith("dvc"):
        import asyncssh

        return asyncssh.generate_private_key("ssh-ed25519").export_private_key()
    if name == "prefect_encryption_key":
        from cryptography.fernet import Fernet

        return Fernet.generate_key()
    return secrets.token_urlsafe(24).encode()


def write(path: Path, secret: bytes) -> None:
    """Writes the whole file or none of it."""
    half = path.with_name(path.name + ".new")
    half.unlink(missing_ok=True)
    with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    half.replace(path)


def read(folder: Path, name: str) -> str:
    """Raises InputError where there is no such secret, or an empty one: no server starts without."""
    path = folder / name
    try:
        found = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise InputError(f"{path} is not there, and no server of the stack starts without its secret; "
                         f"make it with: python -m infra.keys {folder}") from None
    if not found:
        raise InputError(f"{path} is empty, and no server of the stack starts without its secret; remove it and "
                         f"make it with: python -m infra.keys {folder}")
    if name == "password" and (len(found) < SHORTEST or ":" in found):
        raise InputError(f"{path}: the password must have at least {SHORTEST} characters and no colon")
    return found


if __name__ == "__main__":
    from steps import command

    sys.exit(command.status(lambda folders: make(Path(folders[0])), sys.argv[1:]))
