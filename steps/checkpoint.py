"""A training's state -> folders that a manifest makes complete, and the newest of them that is whole."""

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from steps.command import no_space
from steps.provenance import digest, sha256

PLACE = Path(".evergreen/checkpoints")      # outside the outputs, which DVC removes before a stage runs
DRIVEN = "DVC_STAGE"            # set by DVC, which has a step's outputs some time after its end; evaluate comes later
PARTS = "EVERGREEN_PARTS"       # set by a driver: how many parts a batch is computed in, where memory was too small
MANIFEST = "manifest.json"
KEPT = 2            # the older one is there for when the newer is damaged
SHARE = 0.05        # of the time of training that saving may take: slow disks get fewer checkpoints


class Checkpoints:
    """The checkpoints of one training, at most one in `seconds`, in a folder of their own within `place`.

    `fingerprint` says what the training's bits depend on, {name: digest or value}, and names the folder; a checkpoint
    of another one is never continued.
    """

    def __init__(self, place: Path, seconds: float, fingerprint: Mapping[str, str]):
        self.place, self.seconds, self.fingerprint = place, seconds, dict(fingerprint)
        self.folder = place / digest(self.fingerprint)[:16]
        self.saved, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self.saved >= max(self.seconds, self.cost / SHARE)

    def commit(self, step: int, write: Callable[[Path], None]) -> None:
        """Lets `write` fill a folder, which counts once its manifest has its name, and removes the oldest.

        Raises OSError (ENOSPC) where the disk is full, whatever the library made of it; nothing partial stays.
        """
        began = time.monotonic()
        folder = self.folder / f"checkpoint-{step:08}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        free = shutil.disk_usage(folder).free
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
        """The newest checkpoint that is whole and of this fingerprint; what is passed over is said.

        Of other trainings that did not end, the last is kept until the stage is done, for who goes back to it, where
        the disk has room for three of this one beside it.
        """
        found = sorted(self.folder.glob("checkpoint-*"), reverse=True)
        for path in found:
            if not (reason := damage(path)):
                return path
            say(f"{path}: {reason}; passed over")
            remove(path)
        other = max((path for path in committed(self.place) if not damage(path)), default=None,
                    key=lambda path: (path / MANIFEST).stat().st_mtime)
        kept = other and other.parent
        if other:
            if shutil.disk_usage(self.place).free < 3 * size(other):
                kept = None
            say(f"{other} is not continued, for what it was trained from is not what there is now:\n  "
                + "\n  ".join(difference(manifest(other)["fingerprint"], self.fingerprint)) + "\nit is "
                + ("kept until the stage is done or a third training begins: with that as it was, a run continues it"
                   if kept else "removed, for the disk has no room for both"))
        if found or other:
            say("training starts from the beginning")
        for path in self.place.glob("*"):
            if path != kept:
                shutil.rmtree(path, ignore_errors=True)
        return None

    def clear(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def manifest(folder: Path) -> dict:
    """{fingerprint, files: {name: sha256}}. Raises ValueError where it is not what was written."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if content.pop("sha256", None) != digest(content):
        raise ValueError(folder)
    return content


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def committed(place: Path) -> list[Path]:
    """The complete checkpoints in a folder, or in the folders of all trainings there, oldest first in each."""
    return sorted(path.parent for path in place.rglob(f"checkpoint-*/{MANIFEST}"))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is there with the content it was saved with."""
    try:
        files = manifest(folder)["files"]
    except FileNotFoundError:
        return "it was not completed"
    except (ValueError, AttributeError, OSError):
        return f"{MANIFEST} is damaged"
    for name, content in files.items():
        with suppress(OSError):         # a bad sector
            if sha256(folder / name) == content:
                continue
        return f"{name} is {'damaged' if (folder / name).is_file() else 'missing'}"
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
