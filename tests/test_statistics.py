"""Correlations agree with scipy's, scores of classes with scikit-learn's; intervals cover what they say."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from steps import evaluate, statistics
from steps.schema import Evaluate

DRAW = np.random.default_rng(5)
MEASURED = DRAW.normal(size=(2, 3, 4, 25))                      # x and y, each [3, 4, 25]
TIED = DRAW.integers(0, 4, size=(2, 3, 4, 25)).astype(float)    # four values on 25 places


@pytest.mark.parametrize("ours, theirs", [(statistics.pearson, scipy.stats.pearsonr),
                                          (statistics.spearman, scipy.stats.spearmanr)])
@pytest.mark.parametrize("x, y", [MEASURED, TIED, (TIED[0], MEASURED[1])])
def test_correlations_along_the_last_axis_are_scipys(ours, theirs, x, y):
    found = ours(x, y)
    assert found.shape == (3, 4)
    for place in np.ndindex(3, 4):
        assert found[place] == pytest.approx(theirs(x[place], y[place]).statistic, abs=1e-12)


def test_spearman_knows_the_order_alone():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert statistics.spearman(x, np.exp(x)) == pytest.approx(1)
    assert statistics.spearman(x, -x**3) == pytest.approx(-1)
    assert statistics.pearson(x, np.exp(x)) < 0.95


@pytest.mark.parametrize("correlation", [statistics.pearson, statistics.spearman])
def test_the_correlation_with_a_constant_is_not_a_number(correlation):
    assert np.isnan(correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])))


def macro(labels, predictions):
    return sklearn.metrics.f1_score(labels, predictions, average="macro")


@pytest.mark.parametrize("ours, theirs", [(statistics.matthews, sklearn.metrics.matthews_corrcoef),
                                          (statistics.accuracy, sklearn.metrics.accuracy_score)])
@pytest.mark.parametrize("classes", [2, 6])
def test_scores_of_classes_along_the_last_axis_are_scikit_learns(ours, theirs, classes):
    labels, predictions = np.random.default_rng(classes).integers(0, classes, size=(2, 3, 4, 25))
    found = ours(labels, predictions)
    assert found.shape == (3, 4)
    for place in np.ndindex(3, 4):
        assert found[place] == pytest.approx(theirs(labels[place], predictions[place]), abs=1e-12)


@pytest.mark.parametrize("classes, size", [(2, 25), (6, 25), (6, 4)])
def test_macro_f1_counts_the_classes_that_occur_as_scikit_learn_does(classes, size):
    """Of six classes on four rows some are in a resample and others are not."""
    labels, predictions = np.random.default_rng(classes).integers(0, classes, size=(2, 40, size))
    found = statistics.f1_macro(labels, predictions)
    assert found == pytest.approx([macro(*pair) for pair in zip(labels, predictions, strict=True)], abs=1e-12)


@pytest.mark.parametrize("ours, theirs", [(statistics.matthews, sklearn.metrics.matthews_corrcoef),
                                          (statistics.f1_macro, macro)])
def test_resampled_classes_score_as_one_by_one(ours, theirs):
    random = np.random.default_rng(3)
    labels, predictions = random.integers(0, 3, size=(2, 12))
    drawn = random.integers(0, 12, size=(60, 12))
    assert ours(labels[drawn], predictions[drawn]) == pytest.approx(
        [theirs(labels[row], predictions[row]) for row in drawn], abs=1e-12)


@pytest.mark.parametrize("labels, predictions", [([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [1, 1, 1]), ([1, 1], [1, 1])])
def test_the_matthews_correlation_with_one_class_alone_is_0(labels, predictions):
    assert statistics.matthews(np.array(labels), np.array(predictions)) == 0


def test_scores_of_classes_that_a_reader_can_count():
    """Class 0: 2 of 3 found, one false alarm, F1 2/3; class 1: 1 of 2 found, one false alarm, F1 1/2."""
    labels, predictions = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    assert statistics.accuracy(labels, predictions) == pytest.approx(3 / 5)
    assert statistics.f1_macro(labels, predictions) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert statistics.matthews(labels, predictions) == pytest.approx((2 * 1 - 1 * 1) / 6)


def test_the_mean_is_that_of_the_predictions():
    right = np.array([[1.0, 0.0, 0.5], [1.0, 1.0, 1.0]])
    assert statistics.mean(np.ones((2, 3)), right).tolist() == [0.5, 1.0]


def correlated(rho: float, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, rho], [rho, 1]], size).T
    return x, y


@pytest.mark.parametrize("rho", [0.0, 0.7])
@pytest.mark.parametrize("confidence", [0.6, 0.9])
def test_the_interval_covers_a_known_correlation_as_often_as_it_says(rho, confidence):
    """Spearman's rho of two normal variables is 6/pi asin(rho/2); 300 samples, so that 3 standard errors are
    0.085 at 60 % and 0.052 at 90 %."""
    truth = 6 / np.pi * np.arcsin(rho / 2)
    covered = 0
    for seed in range(300):
        low, high = statistics.interval(statistics.spearman, correlated(rho, 80, seed), 300, confidence, seed)
        covered += low <= truth <= high
    allowed = 3 * np.sqrt(confidence * (1 - confidence) / 300)
    assert abs(covered / 300 - confidence) < allowed


def test_the_interval_is_scipys():
    data = correlated(0.5, 60, 1)
    theirs = scipy.stats.bootstrap(data, lambda x, y, axis: statistics.spearman(x, y), paired=True, vectorized=True,
                                   n_resamples=4000, confidence_level=0.9, method="percentile", rng=1)
    ours = statistics.interval(statistics.spearman, data, 4000, 0.9, seed=2)
    assert ours == pytest.approx((theirs.confidence_interval.low, theirs.confidence_interval.high), abs=0.02)


def test_the_interval_is_a_function_of_the_seed():
    data = correlated(0.5, 60, 1)
    first, again, other = (statistics.interval(statistics.spearman, data, 250, 0.95, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_handful_of_rows_has_an_interval():
    """Of 4 rows one resample in 64 draws a single row four times, and correlates with nothing."""
    labels, predictions = np.array([0.0, 0.2, 0.4, 0.9]), np.array([0.1, 0.2, 0.5, 0.3])
    low, high = statistics.interval(statistics.spearman, (labels, predictions), 500, 0.95, seed=1)
    assert -1 <= low < 0.8 < high <= 1


def test_an_interval_of_classes_holds_the_score():
    labels = np.random.default_rng(1).integers(0, 3, 80)
    predictions = np.where(np.arange(80) % 4 == 0, (labels + 1) % 3, labels)
    for statistic in (statistics.matthews, statistics.f1_macro, statistics.accuracy):
        low, high = statistics.interval(statistic, (labels, predictions), 300, 0.95, seed=1)
        assert 0.4 < low < statistic(labels, predictions) < high < 1


def intervals(base: np.ndarray, model: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    asked = Evaluate(batch_size=64, resamples=500, confidence=0.95)
    return evaluate.intervals(statistics.spearman, labels, {"base": base, "model": model}, asked, seed=1)


def test_the_gain_of_equal_predictions_is_nothing():
    labels, predictions = correlated(0.5, 60, 1)
    found = intervals(predictions, predictions, labels)
    assert (found["gain_low"], found["gain"], found["gain_high"]) == (0, 0, 0)
    assert (found["base_low"], found["base"], found["base_high"]) == (
        found["model_low"], found["model"], found["model_high"])


def test_the_gain_is_paired():
    """Two models that are wrong about the same rows differ by less than the interval of either is wide."""
    labels, base = correlated(0.5, 200, 1)
    model = base + 0.1 * labels
    found = intervals(base, model, labels)
    assert found["gain"] == pytest.approx(found["model"] - found["base"], abs=1e-6)
    assert 0 < found["gain_low"] < found["gain"] < found["gain_high"]
    assert found["gain_high"] - found["gain_low"] < 0.3 * (found["base_high"] - found["base_low"])
