"""A recipe's decisions <-> the tracking store: an append-only log whose every entry holds the sha256 of the one before.

An entry is a run of the experiment RECIPE/history; its status says whether it is open, done or void. The registered
model's tag `history` names the newest, so that entries missing from the end show as well as those from the middle.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from steps import command, provenance, registry, tracking
from steps.schema import InputError

HEAD = "history"        # the tag of the registered model: number and sha256 of the newest entry
OLD = timedelta(minutes=10)     # no decision takes so long between its entry and the alias
LONGEST = 4000          # characters of a reason; MLflow takes 8,000 bytes
NONE = "none"


@dataclass(frozen=True)
class Event:
    """One decision. `before` and `after` are the champion's numbers, equal where nothing moved; None is nobody."""

    recipe: str
    number: int             # 1, 2, 3 ... in the log
    at: datetime            # UTC
    who: str
    version: int | None     # the one that was judged
    before: int | None
    after: int | None
    verdict: str
    why: str
    previous: str           # sha256 of the entry before, 'none' for the first
    evidence: str = NONE    # run and sha256 of the verdict's document (verdicts.py)
    sha256: str = ""
    state: str = "open"     # open, done or void: MLflow's status of the run, no part of the sha256
    entry: str = ""         # the run's id
    process: str = ""       # what wrote it, as command.identity names it

    def tags(self) -> dict[str, str]:
        """What is stored, and hashed."""
        return {"recipe": self.recipe, "number": str(self.number), "at": self.at.isoformat(), "who": self.who,
                "version": text(self.version), "from": text(self.before), "to": text(self.after),
                "verdict": self.verdict, "why": self.why, "previous": self.previous,
                **({} if self.evidence == NONE else {"evidence": self.evidence})}


@dataclass(frozen=True)
class Log:
    """A recipe's entries in their order, and what is wrong with them in words."""

    events: list[Event]
    problems: list[str]

    def done(self, at: datetime | None = None) -> list[Event]:
        return [e for e in self.events if e.state == "done" and (at is None or e.at <= at)]

    def champion(self, at: datetime | None = None) -> int | None:
        """Who was in charge at that time; of now where none is given."""
        done = self.done(at)
        return done[-1].after if done else None


def append(found, recipe: str, version: int | None, before: int | None, after: int | None, verdict: str, why: str,
           who: str, evidence: str = NONE) -> Event:
    """An open entry after the newest. Call it under the lock of history.deciding; it counts where it is `alone`."""
    if len(why) > LONGEST:
        raise InputError(f"the reason has {len(why)} characters; at most {LONGEST} are kept")
    newest = max([(0, NONE), _head(found, recipe), *((e.number, e.sha256) for e in read(found, recipe).events)])
    event = Event(recipe, newest[0] + 1, datetime.now(UTC), who, version, before, after, verdict, why, newest[1],
                  evidence)
    event = replace(event, sha256=provenance.digest(event.tags()))
    label = f"{event.number}: {verdict} {name(recipe, version)}"
    tags = {**event.tags(), "sha256": event.sha256}
    return replace(event, entry=tracking.append(found, recipe, label, tags, event.at.timestamp()))


def alone(found, event: Event) -> bool:
    """Whether an entry just opened is open still, the newest, and no other is open, though other machines write too.

    Of two at once at least one sees the other, for each is written before it looks; who sees one is to give way.
    """
    rest = [e for e in read(found, event.recipe).events if e.state == "open" or e.number >= event.number]
    return [(e.sha256, e.state) for e in rest] == [(event.sha256, "open")]


def going_on(event: Event) -> bool:
    """Whether an open entry may be another process's decision that is being carried out."""
    ours, old = event.process == command.identity(), datetime.now(UTC) - event.at > OLD
    return event.state == "open" and not ours and not old and not command.ended(event.process, event.at.timestamp())


def close(found, event: Event, done: bool = True) -> Event:
    """Ends an open entry: it was carried out, or it came to nothing."""
    tracking.close(found, event.entry, done)
    if done:
        remember(found, event.recipe, event, event.after)
    return replace(event, state="done" if done else "void")


def remember(found, recipe: str, newest: Event, champion: int | None) -> None:
    """Writes the registered model's tags by which a lost end of the log and a moved alias are noticed."""
    known = registry.model(found, recipe)[1]
    head = max(_head(found, recipe), (newest.number, newest.sha256))
    tags = {HEAD: f"{head[0]} {head[1]}"}
    if champion is not None or registry.IN_CHARGE in known:
        tags[registry.IN_CHARGE] = text(champion)
    registry.tag_model(found, recipe, {key: value for key, value in tags.items() if known.get(key) != value})


def read(found, recipe: str) -> Log:
    """The whole log, checked: every entry as it was written, none missing, each champion after the other."""
    events, problems = {}, []
    for entry, state, deleted, tags in tracking.entries(found, recipe):
        event = _event(entry, state, tags)
        if event is None or event.recipe != recipe:
            problems.append(f"run {entry} of {recipe}/history was rewritten: it is not the entry that it was")
            continue
        if deleted:
            problems.append(f"entry {event.number} was deleted in MLflow; restore it before its gc removes it")
        same = events.get(event.sha256)     # sent twice where the answer to the first was lost on the way
        if same is None or same.state == "open":
            events[event.sha256] = event
    ordered: list[Event] = []
    followed = {event.previous for event in events.values()}
    for event in sorted(events.values(), key=lambda e: (e.number, e.state == "void", e.sha256 not in followed)):
        if not ordered or ordered[-1].number != event.number or event.state != "void":      # void: it gave way
            ordered.append(event)
    problems += _breaks(ordered)
    head, sha256 = _head(found, recipe)
    if head and sha256 not in events:
        problems.append(f"entry {head}, once the newest, is missing")
    return Log(ordered, problems)


def _head(found, recipe: str) -> tuple[int, str]:
    """Number and sha256 of the newest entry as the registered model has it; the next one follows it, gone or not."""
    head, _, sha256 = registry.model(found, recipe)[1].get(HEAD, "0 none").partition(" ")
    return int(head), sha256


def _breaks(ordered: list[Event]) -> list[str]:
    """Where the chain of hashes or of champions is broken."""
    problems, previous, number, champion = [], NONE, 0, None
    for event in ordered:
        if event.number == number:
            problems.append(f"entry {number} was written twice, by two machines at once")
        elif event.number != number + 1:
            problems.append(f"{event.number - number - 1} entries before entry {event.number} are missing")
        elif event.previous != previous:
            problems.append(f"entry {event.number} was written after another entry {number} than is there now")
        elif event.before != champion and event.state != "void":        # void: it may have come to nothing for this
            problems.append(f"entry {event.number} found {name(event.recipe, event.before)} in charge, and the entries "
                            f"before it say {name(event.recipe, champion)}: their status in MLflow was changed")
        previous, number = event.sha256, event.number
        champion = event.after if event.state == "done" else champion
    return problems


def _event(entry: str, state: str, tags: Mapping[str, str]) -> Event | None:
    """The entry as it was written, or None where it is not."""
    try:
        event = Event(tags["recipe"], int(tags["number"]), datetime.fromisoformat(tags["at"]), tags["who"],
                      number(tags["version"]), number(tags["from"]), number(tags["to"]), tags["verdict"],
                      tags["why"], tags["previous"], tags.get("evidence", NONE), tags["sha256"], state, entry,
                      tags.get(tracking.PROCESS, ""))
    except (KeyError, ValueError):
        return None
    return event if provenance.digest(event.tags()) == event.sha256 else None


def table(recipe: str, log: Log, at: datetime | None = None) -> list[str]:
    """For a terminal: who is or was in charge, and every decision up to then."""
    who = name(recipe, log.champion(at))
    lines = [f"{recipe}: {who} was in charge at {at:%Y-%m-%d %H:%M:%SZ}" if at else f"{recipe}: {who} is in charge"]
    events = [e for e in log.events if at is None or e.at <= at]
    moves = [moved(e) for e in events]
    width = max(map(len, moves), default=0)
    for e, move in zip(events, moves, strict=True):
        lines.append(f"  {e.number:>3}  {e.at:%Y-%m-%d %H:%M:%SZ}  {e.verdict:<8}  {move:<{width}}  {e.who}: {e.why}"
                     + ("" if e.state == "done" else f" ({e.state})"))
    return lines


def moved(event: Event) -> str:
    """'sts@1 -> sts@2', or who was judged and who stays."""
    before, judged, after = (name(event.recipe, n) for n in (event.before, event.version, event.after))
    stays = f"{after} stays" if event.after else "nobody is in charge"
    return f"{before} -> {after}" if before != after else f"{judged} ({stays})"


def source(event: Event) -> str:
    """Where an entry and what it rests on are to be found, in words."""
    run_id, _, sha256 = event.evidence.partition(" ")
    return f"entry {event.number} of the history" + (f", verdict {sha256[:16]} in run {run_id}" if sha256 else "")


def text(number: int | None) -> str:
    return NONE if number is None else str(number)


def number(text: str) -> int | None:
    return None if text == NONE else int(text)


def name(recipe: str, number: int | None) -> str:
    return "nobody" if number is None else f"{recipe}@{number}"
