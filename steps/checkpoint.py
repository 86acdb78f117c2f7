"""A training's state -> folders that a manifest makes complete, and the newest of them that is whole."""

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from steps.command import no_space
from steps.provenance import digest, sha256

PLACE = Path(".evergreen/checkpoints")      # outside the outputs, which DVC removes before a stage runs
DRIVEN = "EVERGREEN_DRIVEN"     # set by a driver that clears the checkpoints itself, once DVC has the outputs
PARTS = "EVERGREEN_PARTS"       # set by a driver: how many parts a batch is computed in, where memory was too small
MANIFEST = "manifest.json"
KEPT = 2            # the older one is there for when the newer is damaged
SHARE = 0.05        # of the time of training that saving may take: slow disks get fewer checkpoints


class Checkpoints:
    """The checkpoints of one training in `folder`, at most one in `seconds`.

    `fingerprint` says what the training's bits depend on, {name: digest or value}; a checkpoint of another one is
    never continued.
    """

    def __init__(self, folder: Path, seconds: float, fingerprint: Mapping[str, str]):
        self.folder, self.seconds, self.fingerprint = folder, seconds, dict(fingerprint)
        self.saved, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self.saved >= max(self.seconds, self.cost / SHARE)

    def commit(self, step: int, write: Callable[[Path], None]) -> None:
        """Lets `write` fill a folder, which counts once its manifest has its name, and removes the oldest.

        Raises OSError (ENOSPC) where the disk is full, whatever the library made of it; nothing partial stays.
        """
        began = time.monotonic()
        folder = self.folder / f"checkpoint-{step:08}"
        free = shutil.disk_usage(self.folder.parent).free if self.folder.parent.exists() else 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            write(folder)
            files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
            for name in files:
                synced(folder / name)
            partial = folder / f"{MANIFEST}.partial"
            content = {"fingerprint": self.fingerprint, "files": files}
            partial.write_text(json.dumps({**content, "sha256": digest(content)}, indent=1) + "\n", encoding="utf-8")
            synced(partial)
            partial.rename(folder / MANIFEST)
            synced(folder)
            synced(self.folder)
        except BaseException as error:
            written = sum(path.stat().st_size for path in folder.iterdir())
            left = min(free - written, shutil.disk_usage(folder).free)      # others may fill it meanwhile
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Exception) and not no_space(error) and left < 2 ** 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            raise
        for old in committed(self.folder)[:-KEPT]:
            remove(old)
        self.saved = time.monotonic()
        self.cost = self.saved - began

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole and of this fingerprint; what is passed over is said and removed."""
        found = sorted(self.folder.glob("checkpoint-*"), reverse=True)
        for path in found:
            if reason := damage(path):
                say(f"{path}: {reason}; passed over")
                remove(path)
            elif changed := difference(manifest(path)["fingerprint"], self.fingerprint):
                say(f"{path} is not continued, for what it was trained from is not what there is now:\n  "
                    + "\n  ".join(changed))
                break
            else:
                return path
        if found:
            say("training starts from the beginning")
        self.clear()
        return None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def manifest(folder: Path) -> dict:
    """{fingerprint, files: {name: sha256}}. Raises ValueError where it is not what was written."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if content.pop("sha256", None) != digest(content):
        raise ValueError(folder)
    return content


def committed(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"checkpoint-*/{MANIFEST}"))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is there with the content it was saved with."""
    try:
        files = manifest(folder)["files"]
    except FileNotFoundError:
        return "it was not completed"
    except (ValueError, AttributeError):
        return f"{MANIFEST} is damaged"
    for name, content in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != content:
            return f"{name} is damaged"
    return None


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each thing that differs: values in words, digests shortened."""
    return [f"{name}: was {str(before.get(name, 'absent'))[:16]}, is {str(now.get(name, 'absent'))[:16]}"
            for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def remove(folder: Path) -> None:
    """Takes the manifest away first, so that what a kill leaves of it does not count."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def synced(path: Path) -> None:
    """Waits until the file, or the names in the folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
