"""How often the gate errs and what it can see: pairs of simulated models of known quality -> verdicts.

python -m benchmarks.gate [--pairs 1000] [--power 100] [--trainings 400] [--plot docs/gate-power.png]

The first part draws pairs of equally good models and counts what is promoted; the second draws challengers that are
better by a known gain and counts the same, by the size of the test set. The third draws recipes that are as good as
the champion in the mean over all seeds, trains each from a few, and counts the intervals that hold this truth. All go
through the product's own intervals and rules; 0 leaves a part out. Two simulated models share most of their errors, as
two trainings of one recipe do.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from steps import contest, gate, statistics

SHARED = 0.9        # correlation of two models' errors
POSITIVE = 0.69     # share of the larger class, as in CoLA
RULES = {"margin": 0.0, "confidence": 0.95, "resamples": 500, "floor": -1.0, "min_rows": 2, "test_set": "same",
         "tolerance": 0.0, "slices": {}, "guards": {}, "examples": 1,
         "latency": {"texts": 1, "rounds": 1, "ratio": None, "milliseconds": None},
         "size": {"ratio": None, "megabytes": None}, "approval": {"policy": "auto", "hours": 1.0}}
Draw = Callable[[np.random.Generator, int, float], tuple[np.ndarray, np.ndarray, np.ndarray]]


def errors(random: np.random.Generator, rows: int, models: int = 2) -> np.ndarray:
    """[models, rows] standard normal errors of the champion and its challengers, correlated by SHARED."""
    common, *own = random.standard_normal((1 + models, rows))
    return np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * np.stack(own)


def graded(random: np.random.Generator, rows: int, *gains: float) -> tuple[np.ndarray, ...]:
    """Gold scores, and similarities whose correlation with them is 0.85 and, of each challenger, 0.85 + its gain."""
    gold = random.uniform(size=rows)
    spread = np.array([np.sqrt(1 / 12) * np.sqrt(1 / (0.85 + gain) ** 2 - 1) for gain in (0.0, *gains)])
    return gold, *(gold + spread[:, None] * errors(random, rows, len(spread)))


def classes(random: np.random.Generator, rows: int, gain: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gold classes of two, and answers whose Matthews correlation with them is 0.5 and 0.5 + gain."""
    def correlation(right: float) -> float:
        said = POSITIVE * right + (1 - POSITIVE) * (1 - right)
        return (2 * right - 1) * np.sqrt(POSITIVE * (1 - POSITIVE) / (said * (1 - said)))

    gold = (random.uniform(size=rows) < POSITIVE).astype(int)
    right = np.array([brentq(lambda p, m=m: correlation(p) - m, 0.5, 1.0) for m in (0.5, 0.5 + gain)])
    correct = errors(random, rows) < norm.ppf(right)[:, None]
    return gold, *np.where(correct, gold, 1 - gold)


KINDS: dict[str, tuple[Draw, Callable, int, tuple[float, ...]]] = {
    "Spearman": (graded, statistics.spearman, 300, (0.005, 0.01, 0.02, 0.04)),
    "Matthews correlation": (classes, statistics.matthews, 516, (0.02, 0.05, 0.1, 0.15)),
}
SIZES = (100, 200, 516, 1379)


def verdicts(draw: Draw, statistic: Callable, rows: int, gain: float, pairs: int, rules: gate.Rules,
             seed: int) -> list[str]:
    """The gate's verdict on each of so many pairs."""
    random, found = np.random.default_rng(seed), []
    for pair in range(pairs):
        gold, champion, challenger = draw(random, rows, gain)
        test = contest.comparison(statistic, gold, [challenger], champion, rules, seed + pair)
        now = gate.Pair(test.challenger.value, test.champion.value)
        evidence = gate.Evidence("simulated", test=test, registered=now, now=now, champion_rows=rows)
        found.append(gate.decide(evidence, rules).verdict)
    return found


def covered(seeds: int, trainings: int, rules: gate.Rules, rows: int = 300, luck: float = 0.02) -> float:
    """The share of trainings, from so many seeds each, whose interval holds the true gain over all seeds: 0.

    The Spearman correlation of a seed is that of the champion and `luck` times a standard normal number.
    """
    random, held = np.random.default_rng(seeds), 0
    for training in range(trainings):
        gold, champion, *challengers = graded(random, rows, *luck * random.standard_normal(seeds))
        gain = contest.comparison(statistics.spearman, gold, challengers, champion, rules, training).gain
        held += gain.low <= 0 <= gain.high
    return held / trainings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=1000, help="of equally good models (1000)")
    parser.add_argument("--power", type=int, default=100, help="pairs for each size and true gain (100)")
    parser.add_argument("--trainings", type=int, default=400, help="from each number of seeds (400)")
    parser.add_argument("--plot", type=Path, default=Path("docs/gate-power.png"))
    options = parser.parse_args()
    rules = gate.Rules.model_validate(RULES)
    for name, (draw, statistic, rows, _) in KINDS.items() if options.pairs else ():
        found = verdicts(draw, statistic, rows, 0.0, options.pairs, rules, 0)
        promoted = found.count("promote")
        low, high = binomtest(promoted, len(found)).proportion_ci()
        print(f"{name}, {rows} rows: of {len(found)} equally good pairs {promoted} promoted, "
              f"{found.count('reject')} rejected: error rate {promoted / len(found):.1%} "
              f"(95 % interval {low:.1%} to {high:.1%})", flush=True)
    for seeds in (1, 2, 3, 5, 10) if options.trainings else ():
        share = covered(seeds, options.trainings, rules)
        print(f"{seeds} seeds: {share:.1%} of {options.trainings} intervals hold the true gain over seeds", flush=True)
    if options.power:
        plot(options.plot, options.power, rules)


def plot(path: Path, power: int, rules: gate.Rules) -> None:
    """Prints and draws the share of better challengers that are promoted, of so many pairs each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (name, (draw, statistic, _, gains)) in zip(figure.subplots(1, 2, sharey=True), KINDS.items(),
                                                         strict=True):
        for gain in gains:
            shares = [verdicts(draw, statistic, rows, gain, power, rules, 1).count("promote") / power
                      for rows in SIZES]
            print(f"{name}, true gain {gain:g}: " + ", ".join(
                f"{share:.0%} at {rows} rows" for rows, share in zip(SIZES, shares, strict=True)), flush=True)
            axes.plot(SIZES, shares, marker="o", label=f"true gain {gain:g}")
        axes.set(title=name, xlabel="test rows", ylabel="share promoted", xscale="log", ylim=(0, 1.02))
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
