"""The tests that are marked with rows of the fault matrix -> docs/reliability.md.

python -m tests.matrix [further arguments of pytest]
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs/reliability.md"
ROWS = {
    1: ("kill -9 in training, in every recipe",
        "at most one interval is lost; on a CPU with the same threads the same bits"),
    2: ("kill -9 while a checkpoint is saved", "the one before is continued"),
    3: ("a checkpoint's file is cut, empty, flipped or gone", "named and passed over; the one before is continued"),
    4: ("every checkpoint is damaged", "a new start, said aloud"),
    5: ("other data, settings, code, threads or packages than the checkpoint's",
        "not continued, the difference printed, a new start; kept for who goes back"),
    6: ("a full disk, in checkpoint, cache or database", "named, nothing partial stays, works once there is room"),
    7: ("less room than three checkpoints", "refused before training"),
    8: ("SIGTERM, Ctrl-C", "a checkpoint, then the end within 30 s"),
    9: ("kill -9 of `dvc repro` or the run", "no step lives on beside a new one; one writer for each output"),
    10: ("kill -9 while DVC writes to its cache", "the next run is right"),
    11: ("an object in DVC's cache rots", "found before it is used, made anew"),
    12: ("two runs in one workspace", "the second stops within 10 s and names the first"),
    13: ("schedules that overlap: ten starts at once", "one runs, nine are told of it"),
    14: ("runner and flow killed together", "Crashed within 120 s"),
    15: ("a run died before the server was up", "a sweep finds it"),
    16: ("a run taken for dead that lives", "it cannot register"),
    17: ("the Prefect server is killed", "the flow completes"),
    18: ("the MLflow server is killed in a call", "one run, one version"),
    19: ("kill -9 in registration", "no version that is not verified"),
    20: ("register twice", "the same version"),
    21: ("several start on a fresh database", "all succeed"),
    22: ("kill -9 in promotion", "the old champion or the new"),
    23: ("two challengers race", "the better one is champion"),
    24: ("a challenger without a finite metric, or of other test rows", "held, with the reason"),
    25: ("the champion is deleted or damaged", "loading fails closed"),
    26: ("a loss, gradient or score that is not finite; collapsed embeddings",
         "stopped before the step is taken, rows of the batch named, nothing kept"),
    27: ("a source is unreachable, partial or changed", "retried, then named; checked before it is cached"),
    28: ("memory is too small; a step is killed", "one more try, from the checkpoint"),
    29: ("the clock jumps by an hour", "decisions keep their order; when a run starts is the scheduler's"),
    30: ("packages drift", "refused; the server starts from the lock"),
}


class Results:
    """A pytest plugin that counts the outcomes of each row's tests."""

    def __init__(self):
        self.rows: dict[int, Counter] = defaultdict(Counter)
        self.known: Counter = Counter()
        self.guards: list[tuple[str, str]] = []

    def pytest_collection_modifyitems(self, items):
        """What takes minutes comes last, so that an interrupted run says most."""
        items.sort(key=lambda item: ["killed" in item.fixturenames, "faults" in item.fixturenames][::-1])

    def pytest_collection_finish(self, session):
        self.known.update(mark.args[0] for item in session.items for mark in item.iter_markers("fault"))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = (yield).get_result()
        if report.when == "call" or report.outcome != "passed":
            for mark in item.iter_markers("fault"):
                self.rows[mark.args[0]][report.outcome] += 1
            if item.get_closest_marker("guard"):
                self.guards.append((item.name, report.outcome))

    def pytest_sessionfinish(self):
        PAGE.write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        lines = ["# What can go wrong, and what then happens", "",
                 "Written by `tests/matrix.py` from tests that inject each fault; `make reliability` runs all of them, "
                 "each recipe killed 20 times, and `make test` those that are quick. What was not run is counted.",
                 "",
                 "| # | fault | what must happen | tests |", "|---:|---|---|---|"]
        for row, (fault, required) in ROWS.items():
            counts = dict(sorted(self.rows[row].items())) | {"not run": self.known[row] - self.rows[row].total()}
            said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
            lines.append(f"| {row} | {fault} | {required} | {said or 'no tests yet'} |")
        lines += ["", "## Guards switched off", "",
                  "Each of these tests switches one guard off and sees its row fail (passed: it failed, as it must).",
                  "", "| guard | result |", "|---|---|",
                  *(f"| {name.removeprefix('test_').replace('_', ' ')} | {outcome} |" for name, outcome in self.guards)]
        return "\n".join(lines) + "\n"


def main() -> int:
    results = Results()
    # fleet_faults.py named beside its folder would not be collected: pytest takes it for a part of that
    code = pytest.main(["-m", "fault or guard", "--durations=0", "--kills=20", "--override-ini",
                        "python_files=test_*.py fleet_faults.py", "tests", *sys.argv[1:]], plugins=[results])
    print(f"written to {PAGE}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
