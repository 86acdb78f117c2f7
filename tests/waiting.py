"""A question -> its first true answer, asked until then."""

import contextlib
import time
from collections.abc import Callable


def until(what: Callable, seconds: float = 90.0, said: Callable[[], str] = str):
    """The first true answer of `what`, where an OSError is a no; fails after so many seconds with what `said` says."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if found := what():
                return found
        assert time.monotonic() < end, f"waited {seconds} s in vain\n{said()}"
        time.sleep(0.05)
