"""What processes do to a registry at once, or until they are killed; each runs forked from one that imported all.

python -m tests.faults FUNCTION ARGUMENTS...        in the folder of a store; prints a JSON value
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import mlflow
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

from steps import command, history, journal, registry, tracking
from tests import shelf

OURS = str(Path(history.__file__).parent)


def forked(body: Callable) -> tuple[int, "os.PathLike | int"]:
    """Starts body(); returns the process and the end of a pipe on which the JSON of its result comes."""
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        return pid, reader
    code = 1
    try:
        os.write(writer, json.dumps(body()).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(process: tuple) -> tuple[int, object]:
    """(exit status, or minus the signal, and result) of a forked process."""
    pid, reader = process
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said) if said else None


def result(body: Callable):
    code, value = ended(forked(body))
    assert code == 0
    return value


def traced(body: Callable, kill_at: int = 0, everywhere: bool = True, since: str = "") -> int:
    """Runs body() and counts its steps: calls, and the lines of our own files. At step `kill_at` it is killed.

    They count from the first call of our function `since` on; not `everywhere`, those of MLflow's stores and ours do.
    """
    count, begun = 0, not since

    def step(frame, event, _):
        nonlocal count, begun
        ours = frame.f_code.co_filename.startswith(OURS)
        begun = begun or (ours and frame.f_code.co_name == since)
        if begun and (everywhere or ours or "/mlflow/store/" in frame.f_code.co_filename):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return step if ours else None
    sys.settrace(step)
    try:
        body()
    finally:
        sys.settrace(None)
    return count


def alias(name: str = "champion") -> int | None:
    return registry.model(tracking.client(), "sts")[0].get(name)


def killed_promotions(kills: int, seed: int) -> list[dict]:
    """Promotes 1 and 2 in turn, killed each time; what was in charge before and after, and the log then."""
    def start():
        found = tracking.client()
        shelf.add(found, 2)
        history.move(found, "sts", 1, "", "promote")

    def promote(to: int, since: str, kill_at: int = 0) -> int:
        found = tracking.client()
        return traced(lambda: history.move(found, "sts", to, "", "promote"), kill_at, since=since)

    def look() -> dict:
        now = alias()
        found = tracking.client()
        loads = now is not None and registry.verified(found, "sts", now).is_dir()
        noticed = history.reconcile(found, "sts")
        log = journal.read(found, "sts")
        return {"now": now, "loads": loads, "noticed": noticed is not None, "problems": log.problems,
                "open": sum(e.state == "open" for e in log.events), "says": log.champion(), "entries": len(log.events)}
    result(start)
    draw, found, before = random.Random(seed), [], 1
    steps = {since: result(lambda since=since, to=to: promote(to, since)) for since, to in (("", 2), ("append", 1))}
    for turn in range(kills):
        to, since = 3 - before, ("", "append", "append")[turn % 3]      # where something is written, twice as often
        kill_at = draw.randrange(1, steps[since])
        code, _ = ended(forked(lambda to=to, since=since, kill_at=kill_at: promote(to, since, kill_at)))
        found.append({"before": before, "to": to, "code": code, **result(look)})
        before = found[-1]["now"]
    return found


def killed_decisions(kills: int, seed: int) -> list[dict]:
    """Decides on 1, the better one, while 2 is in charge, killed each time; what there is then, and after one more go.

    It is killed anywhere, once a verdict is there to be kept, once the alias is about to move, or once it has moved.
    """
    import sentence_transformers  # noqa: F401

    from flows import promotion
    from steps import contest, verdicts  # noqa: F401

    good, bad = 1, 2

    def decide(since: str, kill_at: int = 0) -> int:
        tracking.client()
        return traced(lambda: promotion.decide("sts@1", "yes"), kill_at, everywhere=False, since=since)

    def prepare() -> None:
        """The other one in charge, and no verdict."""
        found = tracking.client()
        if alias() != bad:
            history.move(found, "sts", bad, "", "rollback")
        for tag in found.get_model_version("sts", str(good)).tags:
            if tag.startswith("verdict"):
                found.delete_model_version_tag("sts", str(good), tag)

    def look() -> dict:
        found = tracking.client()
        noticed, version = history.reconcile(found, "sts"), found.get_model_version("sts", str(good))
        log, evidence = journal.read(found, "sts"), verdicts.evidence_of(version.run_id, version.tags)
        now = alias()
        return {"now": now, "loads": registry.verified(found, "sts", now).is_dir(), "noticed": noticed is not None,
                "problems": [*log.problems, *verdicts.problems(found, log)], "says": log.champion(),
                "judged": "verdict_id" in version.tags, "whole": verdicts.find(found, evidence) is not None}

    def again() -> list:
        return [promotion.decide("sts@1", "yes"), alias()]
    draw, found, steps = random.Random(seed), [], {}
    for since in ("", "keep", "move", "close"):
        result(prepare)
        steps[since] = result(lambda since=since: decide(since))
    for turn in range(kills):
        result(prepare)
        since = list(steps)[turn % 4]
        kill_at = draw.randrange(1, steps[since])
        code, _ = ended(forked(lambda since=since, kill_at=kill_at: decide(since, kill_at)))
        found.append({"code": code, **result(look), "again": result(again)})
    return found


def killed_registrations(kills: int, seed: int) -> list[dict]:
    """Registers another evaluation of the same model each time, killed; what is in the registry then."""
    import matplotlib.pyplot  # noqa: F401
    import sentence_transformers  # noqa: F401

    from steps import register

    metrics = Path("evaluation/sts/test/metrics.json")

    def another() -> None:
        metrics.write_text(metrics.read_text(encoding="utf-8") + " ", encoding="utf-8")

    def body(kill_at: int = 0) -> int:
        tracking.client()
        return traced(lambda: register.register("sts"), kill_at, everywhere=False)

    def look() -> dict:
        found = tracking.client()
        versions = found.search_model_versions("name = 'sts'")
        trusted = [registry.verified(found, "sts", int(v.version)).is_dir() for v in versions]
        return {"versions": len(versions), "trusted": sum(trusted), "complete": sum(
            v.status == "READY" and len(v.tags["weights_sha256"]) == 64 for v in versions)}

    def finish() -> dict:
        first, again = register.register("sts"), register.register("sts")
        found = tracking.client()
        runs = found.search_runs(["1"])
        stored = [path.name for path in Path(".evergreen/artifacts/sts/models").iterdir()]
        return {**look(), "stored": len(stored), "same": first.number == again.number, "aliases": again.aliases,
                "contents": len({v.tags["evaluation_sha256"] for v in found.search_model_versions("name = 'sts'")}),
                "statuses": sorted({run.info.status for run in runs})}
    draw, found = random.Random(seed), []
    another()
    steps = result(body)
    for _ in range(kills):
        another()
        kill_at = draw.randrange(1, steps)
        code, _ = ended(forked(lambda kill_at=kill_at: body(kill_at)))
        found.append({"code": code, **result(look)})
    return [*found, result(finish)]


def races(count: int, seed: int, apart: int = 0) -> list[dict]:
    """Two challengers decide at once, again and again: each takes the alias if its score is the better one.

    `apart`, they do so in two clones on one store, without a lock in common.
    """
    if apart:
        os.environ["MLFLOW_TRACKING_URI"] = tracking.uri()

    def decide(number: int, start: Barrier) -> None:
        if apart:
            tracking.STORE = Path(f"clone-{number % 2}")
        found = tracking.client()
        score = {n: float(found.get_model_version("sts", str(n)).tags["score"]) for n in registry.numbers(found, "sts")}
        start.wait(60)
        while True:
            now = history.in_charge(found, "sts")
            try:
                if now is None or score[number] > score[now]:
                    history.move(found, "sts", number, f"{score[number]}", "promote", over=now)
                else:
                    history.note(found, "sts", number, "reject", f"{score[number]}")
            except history.Overtaken:
                continue
            return

    def look_and_add(scores: list[float]) -> dict:
        found = tracking.client()
        log = journal.read(found, "sts")
        return {"champion": registry.model(found, "sts")[0].get("champion"), "problems": log.problems,
                "decided": [e.version for e in log.done()],
                "pair": [shelf.put(found, str(s).encode(), score=str(s)) for s in scores]}
    draw, turns, best = random.Random(seed), [], (0.0, 0)
    for _ in range(count):
        scores = [draw.random(), draw.random()]
        looked = result(lambda s=scores: look_and_add(s))       # at what the turn before came to
        turns = [*turns[:-1], {**looked, **turns[-1]}] if turns else turns
        pair, start = looked["pair"], get_context("fork").Barrier(2)
        codes = [ended(p)[0] for p in [forked(lambda n=n, start=start: decide(n, start)) for n in pair]]
        best = max(best, *zip(scores, pair, strict=True))
        turns.append({"pair": pair, "best": best[1], "codes": codes})
    return [*turns[:-1], {**result(lambda: look_and_add([])), **turns[-1]}]


def writers(count: int, each: int) -> dict:
    """So many processes register so many versions each, and put every fifth in charge, while others read the alias."""
    done = Path("done")

    def write(number: int) -> list[int]:
        found = tracking.client()
        made = []
        for n in range(each):
            made.append(shelf.put(found, f"writer {number}, version {n}".encode()))
            if n % 5 == 0:
                history.move(found, "sts", made[-1], "", "promote")
        return made

    def read() -> int:
        found, seen = tracking.client(), 0
        while not done.exists():
            if (now := history.in_charge(found, "sts")) is not None:
                registry.verified(found, "sts", now)
                seen += 1
            time.sleep(0.05)
        return seen

    def look() -> dict:
        found = tracking.client()
        log = journal.read(found, "sts")
        return {"numbers": registry.numbers(found, "sts"), "problems": log.problems, "entries": len(log.events),
                "champion": alias(), "says": log.champion()}
    result(lambda: shelf.put(tracking.client(), b"first"))
    readers = [forked(read) for _ in range(2)]
    wrote = [ended(p) for p in [forked(lambda n=n: write(n)) for n in range(count)]]
    done.touch()
    return {"writers": wrote, "readers": [ended(p) for p in readers], **result(look)}


if __name__ == "__main__":
    command.quiet()
    function, *arguments = sys.argv[1:]
    print(json.dumps(globals()[function](*map(int, arguments))))
