"""A verdict that waits for a person: since when, for how long, and what is written down when nobody answers."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from steps import history, params, registry, tracking, verdicts
from steps.registry import Version
from steps.verdicts import LAPSED, PROMOTED, WAITING

TOLD, ASKED = "verdict_told", "verdict_asked"       # tags of a version that a server's run decided on


def write_down(found, version: Version, state: str, verdict: str, why: str, evidence: str, over: int | None) -> str:
    """A decision that moves nothing, in the history and with the version. Returns the state."""
    history.note(found, version.recipe, version.number, verdict, why, evidence=evidence, over=over)
    verdicts.mark(found, version.recipe, version.number, state)
    return state


def late(state: str, hours: float) -> bool:
    """Whether a verdict has waited for a person for longer."""
    begun = verdicts.waits_since(state)
    return begun is not None and datetime.now(UTC) - begun > timedelta(hours=hours)


def unconfirmed(hours: float, kept: Mapping) -> str:
    return f"nobody confirmed within {hours:g} hours; the rules said promote: {kept['reason']}"


def lapse(recipe: str) -> list[int]:
    """Closes the verdicts on a recipe's versions that nobody confirmed in time; returns the versions."""
    found, hours = tracking.client(), params.load().recipe(recipe).gate.approval.hours
    closed = []
    with history.deciding(recipe):
        for number in registry.tagged(found, recipe, "verdict_state", WAITING):
            version, tags = registry.find(found, recipe, str(number))
            evidence = verdicts.evidence_of(version.run_id, tags)
            if registry.CHAMPION in version.aliases:        # a rollback put it in charge
                verdicts.mark(found, recipe, number, PROMOTED)
            elif late(tags["verdict_state"], hours) and (kept := verdicts.find(found, evidence)):
                write_down(found, version, LAPSED, "hold", unconfirmed(hours, kept), evidence, history.ANYBODY)
                closed.append(number)
    return closed


def newest(recipe: str) -> int | None:
    """The newest version that waits for a person."""
    return max(registry.tagged(tracking.client(), recipe, "verdict_state", WAITING), default=None)


def since(recipe: str, number: int) -> datetime | None:
    """Since when the verdict on a version has waited for a person; None where it does not."""
    return verdicts.waits_since(state(recipe, number))


def owe(recipe: str, number: int) -> None:
    """A server's run is about to decide, and has to tell of it; where it is killed before, the next one tells."""
    _tag(recipe, number, TOLD, "no")


def mark_told(recipe: str, number: int) -> None:
    _tag(recipe, number, TOLD, "yes")


def untold(recipe: str, number: int) -> bool:
    return _tags(recipe, number).get(TOLD) == "no"


def mark_asked(recipe: str, number: int) -> None:
    """A person is now asked on a run's page."""
    _tag(recipe, number, ASKED, state(recipe, number))


def unasked(recipe: str, number: int) -> bool:
    """Whether the verdict of a server's run waits for a person whom no run has asked."""
    tags = _tags(recipe, number)
    state = tags.get("verdict_state", "")
    return TOLD in tags and state.startswith(WAITING) and tags.get(ASKED) != state


def _tag(recipe: str, number: int, name: str, value: str) -> None:
    tracking.client().set_model_version_tag(recipe, str(number), name, value)


def _tags(recipe: str, number: int) -> Mapping[str, str]:
    found = registry.find(tracking.client(), recipe, str(number))
    return found[1] if found else {}


def said(versions: Mapping[str, int]) -> str:
    """What became of the verdicts on these versions, for a line."""
    return ", ".join(f"{recipe}@{number} ({state(recipe, number) or 'gone'})" for recipe, number in versions.items())


def state(recipe: str, number: int) -> str:
    """The state of the version's verdict, empty where there is none or the version was deleted."""
    return _tags(recipe, number).get("verdict_state", "")
