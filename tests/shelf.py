"""Small versions of `sts` in a store of their own: a few bytes each, registered as ours are, nothing trained."""

import functools
import os
from pathlib import Path

from steps import model_files, registry, tracking

RECIPE = "sts"


def add(found, count: int = 1, **tags: str) -> list[int]:
    """Registers versions whose files match their digest; returns their numbers."""
    return [put(found, f"weights {os.getpid()} {n}".encode(), **tags) for n in range(count)]


def put(found, content: bytes, name: str = "model.safetensors", **tags: str) -> int:
    """Registers one version with one file of this content."""
    if "kind" not in registry.model(found, RECIPE)[1]:
        found.create_registered_model(RECIPE, tags={"kind": "small"})
    stored = Path("shelf", os.urandom(8).hex()).absolute()
    (stored / "model").mkdir(parents=True)
    (stored / "model" / name).write_bytes(content)
    tags |= {"files_sha256": model_files.digest(stored)}
    if tracking.uri().startswith("sqlite:"):
        return int(found.create_model_version(RECIPE, str(stored), tags=tags).version)
    run_id, artifacts = run_of_process(found, os.getpid())      # a server takes what lies in its own store alone
    found.log_artifacts(run_id, str(stored), stored.name)
    return int(found.create_model_version(RECIPE, f"{artifacts}/{stored.name}", run_id, tags).version)


@functools.cache
def run_of_process(found, pid: int) -> tuple[str, str]:
    """The run that holds the artifacts of a process: its id and where they lie."""
    run = found.create_run(tracking.experiment(found, RECIPE))
    return run.info.run_id, run.info.artifact_uri


def weights(found, number: int) -> Path:
    """The file that `put` wrote."""
    return next(Path(found.get_model_version(RECIPE, str(number)).source, "model").iterdir())
