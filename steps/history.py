"""Decisions on versions -> the alias `champion` and the log of who moved it, when and why."""

from collections.abc import Iterator
from contextlib import contextmanager

from steps import registry, tracking


@contextmanager
def deciding(recipe: str) -> Iterator[None]:
    """One decision at a time on this store's machine; a decision may hold another of the same thread."""
    from filelock import FileLock

    tracking.STORE.mkdir(exist_ok=True)
    with FileLock((tracking.STORE / f"decide-{recipe}.lock").absolute(), is_singleton=True):
        yield


def move(found, recipe: str, to: int, why: str, verdict: str, who: str | None = None) -> None:
    """Puts version `to` in charge once its files are verified."""
    registry.resolve(f"{recipe}@{to}")
    registry.set_alias(found, recipe, to, "champion")


def note(found, recipe: str, version: int, verdict: str, why: str, who: str | None = None) -> None:
    """Appends a decision that moved nothing (hold, reject) to the log."""
