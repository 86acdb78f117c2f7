"""Files, parameters and the working tree -> the digests that say what made a model."""

import hashlib
import importlib.metadata
import json
import re
import subprocess
from pathlib import Path

from steps.schema import InputError

LOCKS = (Path("requirements.torch.txt"), Path("requirements.train.lock"))


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """One digest of every file below the folder, names and contents."""
    return digest({p.relative_to(folder).as_posix(): sha256(p) for p in folder.rglob("*") if p.is_file()})


def digest(value) -> str:
    """sha256 of a JSON-able value, equal for equal values whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def git(*arguments: str) -> str | None:
    """What git says, or None where it says no or is not there."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None


def git_commit() -> str:
    """HEAD's hash, with '+changes' where tracked files but dvc.lock differ; 'none' outside a repository."""
    head = git("rev-parse", "HEAD")
    return "none" if head is None else head + ("+changes" if changed_files() else "")


def changed_files() -> list[str]:
    """The tracked files that differ from the commit, but dvc.lock, which every run writes."""
    listed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!published/dvc.lock")
    return [line[3:] for line in (listed or "").splitlines()]


def environment() -> str:
    """Digest of the pinned environment that training, evaluation and preparation run in."""
    return digest([sha256(lock) for lock in LOCKS])


def check_environment() -> None:
    """Refuses to train where an installed package is not the pinned one: the lock files version the result."""
    wrong = []
    for lock in LOCKS:
        if not lock.exists():
            raise InputError(f"{lock} is not here; run this in the project's folder")
        pins = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
        for name, pinned in pins:
            try:
                found = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found = "absent"
            if found.split("+")[0] != pinned:
                wrong.append(f"{name} is {found}, {lock} says {pinned}")
    if wrong:
        raise InputError("\n".join(wrong) + "\ninstall what the lock files say: make setup")
