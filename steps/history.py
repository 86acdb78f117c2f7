"""Decisions on versions -> the alias `champion`, and the log of who moved it, when and why (journal.py).

An entry is opened before the alias moves and closed after, so a kill -9 leaves the old or the new champion, and the
next command closes the entry. An alias that was moved in MLflow is a decision too: it is noticed and written down.
One machine's decisions wait for each other by a lock; those of several machines on one store by their open entries.
"""

import getpass
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from steps import journal, registry, tracking
from steps.journal import Event
from steps.schema import InputError

BY_HAND = "by hand"         # the verdict of an alias that was moved elsewhere
UNKNOWN = "unknown"
ROLLBACK = "rollback"
UNTRUSTED = "its files cannot be trusted"
ANYBODY = -1        # no version's number
LEASE = 60.0        # seconds that another machine's decision may take; then its open entry is a dead one's


class Overtaken(Exception):
    """Somebody else is in charge now than a decision was made against."""


@contextmanager
def deciding(recipe: str, wait: bool = True) -> Iterator[None]:
    """One decision at a time on this store's machine; a decision may hold another of the same thread.

    Without `wait` it raises TimeoutError where somebody else decides.
    """
    from filelock import FileLock

    tracking.STORE.mkdir(exist_ok=True)
    lock = FileLock((tracking.STORE / f"decide-{recipe}.lock").absolute(), is_singleton=True)
    with lock.acquire(timeout=-1 if wait else 0):
        yield


def move(found, recipe: str, to: int, why: str, verdict: str, who: str | None = None,
         evidence: str = journal.NONE, over: int | None = ANYBODY) -> Event:
    """Puts version `to` in charge: verifies its files, opens an entry, moves the alias, closes the entry.

    `evidence` names the verdict's document, as verdicts.keep does, and `over` the champion that it was reached against.
    Raises InputError where the version is not there, its files are not those that were registered, or it is in
    charge already, and Overtaken where another than `over` is; then nothing is written.
    """
    def champions() -> tuple[int | None, int]:
        if (before := _against(found, recipe, over)) == to:
            raise InputError(f"{recipe}@{to} is in charge already")
        return before, to

    with deciding(recipe):
        reconcile(found, recipe)
        if to not in (known := registry.numbers(found, recipe)):
            raise InputError(f"{recipe!r} has no version {to}; versions: {known}")
        champions()
        registry.verified(found, recipe, to)
        event = _enter(found, recipe, to, champions, verdict, why, who or me(), evidence)
        try:
            registry.set_alias(found, recipe, to, registry.CHAMPION)
        except Exception:
            with suppress(Exception):       # else the next command closes it
                journal.close(found, event, done=in_charge(found, recipe) == to)
            raise
        event = journal.close(found, event)
        registry.say(found, recipe, to, f"- put in charge {event.at:%Y-%m-%d %H:%M:%SZ} by {event.who}: {verdict}, "
                                        f"{why or 'no reason given'} ({journal.source(event)})")
        return event


def note(found, recipe: str, version: int, verdict: str, why: str, who: str | None = None,
         evidence: str = journal.NONE, over: int | None = ANYBODY) -> Event:
    """Appends a decision that moved nothing (hold, reject) to the log. Raises Overtaken as `move` does."""
    def champions() -> tuple[int | None, int | None]:
        now = _against(found, recipe, over)
        return now, now

    with deciding(recipe):
        reconcile(found, recipe)
        return journal.close(found, _enter(found, recipe, version, champions, verdict, why, who or me(), evidence))


def _against(found, recipe: str, over: int | None) -> int | None:
    """Who is in charge. Raises Overtaken where that is not `over`."""
    now = in_charge(found, recipe)
    if over not in (ANYBODY, now):
        raise Overtaken(f"{journal.name(recipe, now)} is in charge, not {journal.name(recipe, over)}")
    return now


def _enter(found, recipe: str, version: int, champions: Callable[[], tuple[int | None, int | None]], verdict: str,
           why: str, who: str, evidence: str) -> Event:
    """An open entry that no other machine's stands beside; `champions` are those before and after, asked again then."""
    while True:
        before, after = champions()
        event = journal.append(found, recipe, version, before, after, verdict, why, who, evidence)
        try:
            if journal.alone(found, event) and champions() == (before, after):
                return event
        except Exception:
            journal.close(found, event, done=False)
            raise
        journal.close(found, event, done=False)
        time.sleep(random.random())     # else two that give way to each other meet again
        reconcile(found, recipe)


def rollback(found, recipe: str, to: int | None = None, why: str = "", who: str | None = None) -> Event:
    """Puts the champion before this one back, or version `to`. A second rollback goes one further back."""
    with deciding(recipe):
        reconcile(found, recipe)
        earlier = previous(found, recipe) if to is None else to
        if earlier is None:
            raise InputError(f"{recipe} had no champion before this one that is still there, "
                             f"see: evergreen history {recipe}; name a version: evergreen rollback {recipe} --to N")
        return move(found, recipe, earlier, why or "no reason given", ROLLBACK, who)


def previous(found, recipe: str) -> int | None:
    """The champion that a rollback puts back: of those once in charge, the last before this one that is still there.

    A rollback takes back what came after the champion that it restores, as undo does.
    """
    stack: list[int] = []
    for event in journal.read(found, recipe).done():
        if event.after is None or event.before == event.after:
            continue
        if event.verdict == ROLLBACK and event.after in stack:
            while stack[-1] != event.after:
                stack.pop()
        else:
            stack.append(event.after)
    now, there = in_charge(found, recipe), registry.numbers(found, recipe)
    return next((n for n in reversed(stack) if n != now and n in there), None)


def was_in_charge(found, recipe: str, number: int) -> bool:
    """Whether the version has ever been the champion, however it came to it."""
    return any(event.after == number for event in journal.read(found, recipe).done())


def lost(found, recipe: str, but: int) -> int | None:
    """The last champion, other than version `but`, of a recipe that had one and has none now."""
    if in_charge(found, recipe) is not None:
        return None
    return next((e.after for e in reversed(journal.read(found, recipe).done()) if e.after not in (None, but)), None)


def replaced(found, recipe: str, number: int) -> int | None:
    """The champion whose place the version took, the last time that it was put in charge."""
    reconcile(found, recipe)
    return next((e.before for e in reversed(journal.read(found, recipe).done())
                 if e.after == number and e.before != number), None)


def reconcile(found, recipe: str, wait: bool = True) -> Event | None:
    """Closes what a kill left open, and writes down a champion that was moved elsewhere: that entry, if there is one.

    The version's files are verified; what is wrong with them stands in the entry's `why`.
    """
    with deciding(recipe, wait):
        while True:
            log = _settled(found, recipe, wait)
            before, now = log.champion(), in_charge(found, recipe)
            if now == before:
                if log.events:
                    journal.remember(found, recipe, log.events[-1], now)
                return None
            since = f"after entry {log.events[-1].number}" if log.events else "before the first entry"
            why = f"found so, moved {since}; MLflow keeps neither who nor when"
            if now is None:
                there = before in registry.numbers(found, recipe)
                why = f"{recipe}@{before} {'lost its alias' if there else 'was deleted'}; {why}"
            else:
                try:
                    registry.verified(found, recipe, now)
                except InputError as error:
                    why = f"{UNTRUSTED}: {error}; {why}"
            event = journal.append(found, recipe, now, before, now, BY_HAND, why, UNKNOWN)
            same = (journal.read(found, recipe).champion(), in_charge(found, recipe)) == (before, now)
            if same and journal.alone(found, event):
                return journal.close(found, event)
            journal.close(found, event, done=False)     # another machine's decision, that was under way
            time.sleep(random.random())


def _settled(found, recipe: str, wait: bool) -> journal.Log:
    """The log once no entry is open: what others carry out is waited for, what the dead left is closed."""
    seen: dict[str, float] = {}
    while True:
        log = journal.read(found, recipe)
        left = [event for event in log.events if event.state == "open"]
        if not left:
            return log
        for event in left:
            seen.setdefault(event.entry, time.monotonic())
        if any(journal.going_on(event) and time.monotonic() - seen[event.entry] < LEASE for event in left):
            if not wait:
                raise TimeoutError
            time.sleep(0.2)
            continue
        now = in_charge(found, recipe)
        for event in left:
            alone = sum(e.number == event.number for e in log.events) == 1
            journal.close(found, event, done=alone if event.before == event.after else event.after == now)


def notice(recipe: str) -> list[str]:
    """Warnings where the champion was moved elsewhere; where it was not, one question to the store."""
    found = tracking.client()
    aliases, tags = registry.model(found, recipe)
    if journal.text(aliases.get(registry.CHAMPION)) == tags.get(registry.IN_CHARGE, "none"):
        return []
    try:
        event = reconcile(found, recipe, wait=False)
    except TimeoutError:        # whoever decides now notices it too
        return []
    return warnings(found, event) if event else []


def warnings(found, event: Event) -> list[str]:
    """What a person should know of a champion that was found moved elsewhere."""
    recipe, undo = event.recipe, f"undo it: evergreen rollback {event.recipe}"
    if event.after is None:
        return [f"{recipe} has no champion any more: {event.why}; put the one before it back: "
                f"evergreen rollback {recipe}"]
    now = journal.name(recipe, event.after)
    lines = [f"{now} was put in charge by hand in MLflow in place of {journal.name(recipe, event.before)}; noticed now "
             "and written to the history"]
    if event.why.startswith(UNTRUSTED):
        lines.append(f"{event.why}; {undo}")
    verdict = found.get_model_version(recipe, str(event.after)).tags.get("verdict")
    if verdict is None:
        lines.append(f"the rules were not asked about {now}; ask them: evergreen promote {now}")
    elif verdict != "promote":
        lines.append(f"the rules said {verdict} for {now}; {undo}")
    return lines


def in_charge(found, recipe: str) -> int | None:
    """The number that holds the alias `champion` now."""
    return registry.model(found, recipe)[0].get(registry.CHAMPION)


def parse_time(text: str) -> datetime:
    """'2026-11-01T00:00Z' -> the time in UTC. A time without a zone is refused: it is another one elsewhere."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"--at {text!r} is not a time; write it as 2026-11-01T00:00Z") from None
    if at.tzinfo is None:
        raise InputError(f"--at {text!r} names no time zone; for UTC append Z, as in 2026-11-01T00:00Z")
    return at.astimezone(UTC)


def me() -> str:
    """Who decides: the user of this process and the machine."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):     # a user without a name, as in some containers
        return f"{UNKNOWN}@{socket.gethostname()}"
