"""What is decided on given evidence: promote, hold or reject, and every rule that forbids a promotion by its name."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import gate as simulation
from steps import contest, gate, params, statistics
from steps.gate import Comparison, Evidence, Interval, Pair
from steps.schema import InputError
from tests.project import ROOT

RULES = gate.Rules.model_validate(simulation.RULES | {
    "floor": 0.5, "min_rows": 100, "tolerance": 0.002, "slices": {"length: long": 0.02}, "guards": {"other": 0.01},
    "latency": {"texts": 1, "rounds": 1, "ratio": 1.5, "milliseconds": 20.0},
    "size": {"ratio": 1.2, "megabytes": 100.0}})
NAN = float("nan")


def compared(gain: float, low: float, high: float, rows: int = 200) -> Comparison:
    """A champion of 0.6 and a challenger that is better by the gain."""
    return Comparison(rows, Interval(0.6 + gain, 0.5, 0.8), Interval(0.6, 0.5, 0.7), Interval(gain, low, high))


GOOD = Evidence(
    "spearman_cosine", test=compared(0.1, 0.05, 0.15), registered=Pair(0.7, 0.6), now=Pair(0.7, 0.6),
    slices={"length: long": compared(0.1, 0.0, 0.2)}, guards={"other": compared(0.0, -0.005, 0.005)},
    champion_rows=200, milliseconds=Pair(12.0, 10.0), megabytes=Pair(90.0, 90.0))


def missed(decision: gate.Decision) -> list[str]:
    return [rule.name for rule in decision.rules if not rule.met]


def test_a_gain_whose_interval_lies_above_the_margin_is_promoted():
    decision = gate.decide(GOOD, RULES)
    assert (decision.verdict, missed(decision)) == ("promote", [])
    assert decision.reason == "the gain 0.1000 (0.0500 to 0.1500) lies above the margin 0 and every rule is met"


@pytest.mark.parametrize("low, high, margin, verdict", [
    (0.01, 0.02, 0.0, "promote"), (0.0, 0.02, 0.0, "hold"), (-0.01, 0.02, 0.0, "hold"), (-0.02, 0.0, 0.0, "hold"),
    (-0.02, -0.01, 0.0, "reject"), (0.01, 0.02, 0.005, "promote"), (0.01, 0.02, 0.015, "hold"),
    (0.01, 0.02, 0.03, "reject"), (-0.02, -0.01, -0.03, "promote")])
def test_the_interval_decides_against_the_margin(low, high, margin, verdict):
    found = replace(GOOD, test=compared((low + high) / 2, low, high))
    assert gate.decide(found, RULES.model_copy(update={"margin": margin})).verdict == verdict


def test_the_same_weights_are_held_whatever_the_scores():
    decision = gate.decide(replace(GOOD, identical=True), RULES)
    assert (decision.verdict, missed(decision)) == ("hold", ["another model"])


CLOSED = {
    "champion verified": {"broken": {"champion verified": "its files are not those that were registered"}},
    "challenger verified": {"broken": {"challenger verified": "its files are gone"}},
    "test digest": {"broken": {"test digest": "not the split that was registered"}},
    "test set": {"broken": {"test set": "another one"}},
    "metric": {"test": None},
    "finite": {"test": compared(NAN, NAN, NAN)},
    "test rows": {"test": compared(0.1, 0.05, 0.15, rows=99), "champion_rows": 99},
    "smaller test set": {"champion_rows": 201},
    "same metric, challenger": {"registered": Pair(0.71, 0.6)},
    "same metric, champion": {"now": Pair(0.7, 0.61)},
}


@pytest.mark.fault(24)
@pytest.mark.parametrize("rule", CLOSED)
def test_what_cannot_be_compared_soundly_is_held_by_name(rule):
    decision = gate.decide(replace(GOOD, **CLOSED[rule]), RULES)
    assert (decision.verdict, missed(decision)) == ("hold", [rule])
    assert decision.reason.startswith(f"{rule}: ")


@pytest.mark.parametrize("change", [CLOSED[rule] for rule in CLOSED if rule not in ("metric", "finite", "test rows")])
def test_a_loss_that_cannot_be_trusted_is_held_and_not_rejected(change):
    assert gate.decide(replace(GOOD, **{"test": compared(-0.1, -0.15, -0.05), **change}), RULES).verdict == "hold"


@pytest.mark.fault(24)
@pytest.mark.parametrize("bad", [NAN, float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [
    {"registered": "challenger"}, {"registered": "champion"}, {"now": "challenger"}, {"now": "champion"},
    {"milliseconds": "challenger"}, {"megabytes": "champion"}])
def test_no_number_that_is_not_finite_passes(where, bad):
    (name, side), = where.items()
    decision = gate.decide(replace(GOOD, **{name: getattr(GOOD, name)._replace(**{side: bad})}), RULES)
    assert decision.verdict == "hold" and "finite" in missed(decision)


@pytest.mark.fault(24)
@pytest.mark.parametrize("part", ["challenger", "champion", "gain"])
@pytest.mark.parametrize("end", ["value", "low", "high"])
def test_no_interval_with_nan_passes(part, end):
    test = replace(GOOD.test, **{part: getattr(GOOD.test, part)._replace(**{end: NAN})})
    assert gate.decide(replace(GOOD, test=test), RULES).verdict == "hold"


@pytest.mark.fault(24)
@pytest.mark.parametrize("side", ["challenger", "champion"])
def test_a_registered_score_that_is_missing_is_held(side):
    decision = gate.decide(replace(GOOD, registered=GOOD.registered._replace(**{side: None})), RULES)
    assert (decision.verdict, missed(decision)) == ("hold", [f"same metric, {side}"])


@pytest.mark.parametrize("rule, change", {
    "floor": {"now": Pair(0.49, 0.6), "registered": Pair(0.49, 0.6)},
    "slice length: long": {"slices": {"length: long": compared(0.0, -0.03, 0.03)}},
    "guard other": {"guards": {"other": compared(-0.1, -0.15, -0.05)}},
    "latency, ratio": {"milliseconds": Pair(16.0, 10.0)},
    "latency, ms a text": {"milliseconds": Pair(21.0, 20.0)},
    "size, ratio": {"megabytes": Pair(90.0, 60.0)},
    "size, MB": {"megabytes": Pair(101.0, 100.0)},
}.items())
def test_a_gain_that_breaks_another_rule_is_held_by_name(rule, change):
    decision = gate.decide(replace(GOOD, **change), RULES)
    assert (decision.verdict, missed(decision)) == ("hold", [rule])


@pytest.mark.parametrize("rule, change", {
    "smaller test set": {"champion_rows": None}, "slice length: long": {"slices": {}}, "guard other": {"guards": {}},
    "latency, ratio": {"milliseconds": Pair(12.0, None)}, "size, ratio": {"megabytes": Pair(90.0, None)}}.items())
def test_what_a_rule_asks_for_and_was_not_measured_is_held(rule, change):
    decision = gate.decide(replace(GOOD, **change), RULES)
    assert (decision.verdict, missed(decision)) == ("hold", [rule])


@pytest.mark.parametrize(("seeds", "own", "unmet"), [
    (1, -0.01, []), (3, 0.01, []), (3, 0.0, ["own gain"]), (3, None, ["own gain"]), (3, float("nan"), ["own gain"])])
def test_the_mean_over_seeds_does_not_promote_a_version_that_itself_is_no_better(seeds, own, unmet):
    decision = gate.decide(replace(GOOD, seeds=seeds, own=own), RULES)
    assert (decision.verdict, missed(decision)) == ("hold" if unmet else "promote", unmet)


def test_the_first_model_has_no_champion_to_be_as_fast_or_small_as_but_a_floor():
    first = replace(GOOD, first=True, registered=Pair(0.7, None), milliseconds=Pair(12.0, None),
                    megabytes=Pair(90.0, None), champion_rows=None)
    assert gate.decide(first, RULES).verdict == "promote"
    assert missed(gate.decide(first, RULES.model_copy(update={"floor": 0.8}))) == ["floor"]


def test_rules_are_strict_and_say_where_they_are_wrong(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("      margin: 0.0 ", "      margin: .nan "), encoding="utf-8")
    with pytest.raises(InputError, match=r"recipes\.sts\.gate\.margin = nan"):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text(text.replace("guards: {}  ", "guards: {absent: 0.1}  ", 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"gate\.guards names 'absent', which is no further task"):
        params.load(tmp_path / "params.yaml")


def test_a_comparison_of_single_answers_by_hand():
    """Ten rows, of which the champion has five right and the challenger the same five and two more."""
    labels = np.ones(10, int)
    champion, challenger = (np.array([1] * n + [0] * (10 - n)) for n in (5, 7))
    found = contest.comparison(statistics.accuracy, labels, [challenger], champion, RULES, 0)
    assert (found.rows, found.challenger.value, found.champion.value) == (10, 0.7, 0.5)
    assert found.gain.value == pytest.approx(0.2)
    assert (found.gain.low, found.gain.high) == pytest.approx((0.0, 0.5), abs=0.11)


def test_the_interval_covers_seeds_that_differ():
    """Seeds of 0.5 and 0.7 on rows enough that only they vary: 0.6, to each side 12.7 standard errors of 0.1 (t's)."""
    labels, champion = np.ones(4000, int), np.repeat([1, 0], 2000)
    seeds = [np.repeat([1, 0], [n, 4000 - n]) for n in (2000, 2800)]
    found = contest.comparison(statistics.accuracy, labels, seeds, champion, RULES, 0)
    alone = contest.comparison(statistics.accuracy, labels, seeds[1:], champion, RULES, 0)
    assert found.challenger.value == pytest.approx(0.6)
    assert found.gain.high - found.gain.low == pytest.approx(2 * 12.7 * 0.1, rel=0.4) and alone.gain.low > 0.15


def test_the_examples_won_and_lost_most():
    texts = {"text": ["a", "b", "c", "d"]}
    found = contest.examples(statistics.accuracy, np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]),
                             np.array([1, 1, 1, 0]), texts, ["text"], ["no", "yes"], 2)
    assert found == {"won": [{"text": "a", "gold": "no", "champion": "yes", "challenger": "no", "change": 1.0}],
                     "lost": [{"text": "c", "gold": "yes", "champion": "yes", "challenger": "no", "change": -1.0}]}


@pytest.mark.parametrize("kind", simulation.KINDS)
def test_simulated_pairs_of_equal_models_are_promoted_as_rarely_as_stated(kind):
    """1 of 40 is stated. Of 200 pairs 5 are expected; 12 or more would be seen once in 200 such tests."""
    draw, statistic, _, gains = simulation.KINDS[kind]
    rules = gate.Rules.model_validate(simulation.RULES | {"resamples": 200})
    found = simulation.verdicts(draw, statistic, 150, 0.0, 200, rules, 0)
    assert found.count("promote") < 12 and found.count("hold") > 170
    better = simulation.verdicts(draw, statistic, 400, gains[-1], 10, rules, 0)
    assert better.count("promote") >= 8
