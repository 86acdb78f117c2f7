"""Lines that say how far long work is and how much time is left, for terminals and for logs."""

import time

HEARTBEAT = 5.0     # seconds between lines


class Progress:
    """What is done of `total`, in its unit: a line each HEARTBEAT seconds; work that ends earlier says nothing.

    Where nobody knows the total, no time left can be told.
    """

    def __init__(self, what: str, total: int | None, unit: str):
        self.what, self.total, self.unit = what, total, unit
        self.said = time.monotonic()
        self.start(0)

    def start(self, done: int) -> None:
        """The time left is reckoned from here on."""
        self.began, self.first = time.monotonic(), done / self.total if self.total else 0.0

    def at(self, done: int, share: float | None = None) -> None:
        """`share` is that of the work, where not every unit is as much."""
        now = time.monotonic()
        if now - self.said < HEARTBEAT:
            return
        self.said = now
        if self.total is None:
            print(f"{self.what} {done} {self.unit}", flush=True)
            return
        share = done / self.total if share is None else share
        left = (now - self.began) / (share - self.first) * (1 - share)
        print(f"{self.what} {done}/{self.total} {self.unit} ({share:.0%}), {left:.0f} s left", flush=True)
