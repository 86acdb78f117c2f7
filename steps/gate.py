"""Evidence on a challenger and the champion, and a recipe's rules -> promote, hold or reject, with every rule named.

Nothing is measured or loaded here. What cannot be compared soundly is held: the gate fails closed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from steps.schema import Positive, Strict

Finite = Annotated[float, Field(allow_inf_nan=False)]
Margin = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Limit = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Latency(Strict):
    """Both models in turn on single texts: at most so many times the champion's time, or milliseconds a text."""

    texts: Positive
    rounds: Positive
    ratio: Limit | None
    milliseconds: Limit | None


class Size(Strict):
    """Of the weights: at most so many times the champion's, or megabytes."""

    ratio: Limit | None
    megabytes: Limit | None


class Approval(Strict):
    """`auto` promotes what the rules promote; `ask` waits for a person, so many hours."""

    policy: Literal["auto", "ask"]
    hours: Limit


class Rules(Strict):
    """`gate` of a recipe. A slice or guard may lose at most its margin: the interval must lie above minus that."""

    margin: Finite
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    resamples: Annotated[int, Field(ge=100)]
    floor: Finite
    min_rows: Positive
    test_set: Literal["same", "changed"]
    tolerance: Margin
    slices: dict[str, Margin]
    guards: dict[str, Margin]
    latency: Latency
    size: Size
    approval: Approval
    examples: Positive


class Interval(NamedTuple):
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Comparison:
    """Both models on the same rows, and the interval of the paired gain."""

    rows: int
    challenger: Interval
    champion: Interval
    gain: Interval


class Pair(NamedTuple):
    """A number of each side; None where the champion (a majority class, a base model) has none."""

    challenger: float | None
    champion: float | None


NOTHING = Pair(None, None)


@dataclass(frozen=True)
class Evidence:
    """What was found. `broken` names the rules that forbid a comparison, with the reason."""

    metric: str
    broken: Mapping[str, str] = field(default_factory=dict)
    identical: bool = False
    excluded: int = 0               # test rows that either model was trained on
    seeds: int = 1                  # trainings of the challenger's recipe that the interval covers
    first: bool = False             # no champion yet: the other side is the base model
    same_test: bool = True          # the champion was registered with the same test rows
    test: Comparison | None = None
    slices: Mapping[str, Comparison] = field(default_factory=dict)
    guards: Mapping[str, Comparison] = field(default_factory=dict)
    own: float | None = None        # the gain of the version itself, without the other seeds
    registered: Pair = NOTHING     # the score on all test rows when the version was registered
    now: Pair = NOTHING            # and now
    champion_rows: float | None = None      # test rows the champion was registered with
    milliseconds: Pair = NOTHING
    megabytes: Pair = NOTHING


class Rule(NamedTuple):
    name: str
    met: bool
    limit: str
    found: str


@dataclass(frozen=True)
class Decision:
    verdict: Literal["promote", "hold", "reject"]
    reason: str
    rules: list[Rule]


def decide(found: Evidence, rules: Rules) -> Decision:
    """Promote where the gain's interval lies above the margin and every rule is met, reject where it lies below the
    margin, hold otherwise. A comparison that cannot be trusted is a hold, whatever the numbers say."""
    if closed := [Rule(name, False, "can be compared", why) for name, why in found.broken.items()]:
        return _hold(closed)
    if found.identical:
        return _hold([Rule("another model", False, "other weights", "both have the same weights")])
    if found.test is None:
        return _hold([Rule("metric", False, f"{found.metric} of both", "missing")])
    if not (finite := _finite(found)).met:
        return _hold([finite])
    sound = [finite, *_sound(found, rules)]
    if closed := [rule for rule in sound if not rule.met]:
        return _hold(closed, sound)
    gain = Rule("gain", found.test.gain.low > rules.margin, f"above {rules.margin:g}", str(found.test.gain))
    every = [gain, *_others(found, rules), *sound]
    if found.test.gain.high < rules.margin:
        return Decision("reject", f"the gain {gain.found} lies below the margin {rules.margin:g}", every)
    if not gain.met:
        return Decision("hold", f"the gain {gain.found} lies on both sides of the margin {rules.margin:g}", every)
    if missed := [rule for rule in every if not rule.met]:
        return _hold(missed, every)
    return Decision("promote", f"the gain {gain.found} lies above the margin {rules.margin:g} and every rule is met",
                    every)


def _hold(missed: list[Rule], every: list[Rule] | None = None) -> Decision:
    return Decision("hold", "; ".join(f"{r.name}: {r.found}, asked: {r.limit}" for r in missed), every or missed)


def _finite(found: Evidence) -> Rule:
    """max(nan, .5) is nan and not nan < .5 is True, so nothing is compared before this."""
    parts = {"test": found.test, **found.slices, **found.guards}
    numbers = [(f"{part} {side}", number) for part, comparison in parts.items()
               for side, values in asdict(comparison).items() if side != "rows" for number in values]
    numbers += [(f"{name} of the {side}", value) for name, pair in (
        ("registered score", found.registered), ("score now", found.now), ("milliseconds", found.milliseconds),
        ("megabytes", found.megabytes)) for side, value in pair._asdict().items() if value is not None]
    bad = [f"{name} is {value}" for name, value in numbers if not math.isfinite(value)]
    return Rule("finite", not bad, "every number is finite", bad[0] if bad else "yes")


def _sound(found: Evidence, rules: Rules) -> Iterator[Rule]:
    """Whether the comparison says something: enough rows, and scores computed as they were at registration."""
    rows = found.test.rows
    yield Rule("test rows", rows >= rules.min_rows, f"at least {rules.min_rows}", str(rows))
    if not found.first:
        total, before = rows + found.excluded, found.champion_rows
        yield Rule("smaller test set", before is not None and total >= before,
                   f"at least the champion's {'(not known)' if before is None else f'{before:g}'}", str(total))
    for side in ("challenger", "champion"):
        before, now = getattr(found.registered, side), getattr(found.now, side)
        limit = f"as registered, within {rules.tolerance:g}"
        if side == "champion" and (found.first or not found.same_test):
            continue
        if before is None or now is None:
            missing = "the registered score is missing" if before is None else "it has no score now"
            yield Rule(f"same metric, {side}", False, limit, missing)
        else:
            yield Rule(f"same metric, {side}", abs(now - before) <= rules.tolerance, limit,
                       f"{found.metric} {now:.4f}, registered {before:.4f}")


def _others(found: Evidence, rules: Rules) -> Iterator[Rule]:
    score = min(found.test.challenger.value, found.now.challenger)      # the mean over seeds, and the version's own
    yield Rule("floor", score >= rules.floor, f"at least {rules.floor:g}", f"{score:.4f}")
    if found.seeds > 1:         # a lucky mean says nothing of the one that is put in charge
        own = found.own
        yield Rule("own gain", own is not None and own > rules.margin, f"above {rules.margin:g}",
                   "not measured" if own is None else f"{own:.4f}")
    for what, margins, measured in (("slice", rules.slices, found.slices), ("guard", rules.guards, found.guards)):
        for name, margin in margins.items():
            limit = f"loses at most {margin:g}"
            if name in measured:
                gain = measured[name].gain
                yield Rule(f"{what} {name}", gain.low > -margin, limit, f"{gain}, {measured[name].rows} rows")
            else:
                yield Rule(f"{what} {name}", False, limit, "not measured: too few rows, or no such part")
    for name, unit, pair, ratio, most in (
            ("latency", "ms a text", found.milliseconds, rules.latency.ratio, rules.latency.milliseconds),
            ("size", "MB", found.megabytes, rules.size.ratio, rules.size.megabytes)):
        if ratio is not None and not found.first:
            yield _within(f"{name}, ratio", unit, pair, ratio, True)
        if most is not None:
            yield _within(f"{name}, {unit}", unit, pair, most, False)


def _within(name: str, unit: str, pair: Pair, limit: float, relative: bool) -> Rule:
    ours, theirs = pair
    if ours is None or (relative and not theirs):
        return Rule(name, False, f"at most {limit:g}", "not measured")
    value = ours / theirs if relative else ours
    beside = f" ({ours:.1f} against {theirs:.1f} {unit})" if relative else ""
    return Rule(name, value <= limit, f"at most {limit:g}", f"{value:.2f}{beside}")
