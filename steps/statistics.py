"""Labels and predictions -> correlations, accuracies and bootstrap intervals."""

import warnings
from collections.abc import Callable

import numpy as np


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r along the last axis; nan where one side is constant."""
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(axis=-1) / np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rho along the last axis: Pearson's r of the ranks, ties sharing their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def mean(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """The mean prediction: a share, where each example is right (1) or wrong (0)."""
    return predictions.mean(axis=-1)


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return (labels == predictions).mean(axis=-1)


def _counts(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[..., classes] examples of each class, predicted as it, and both."""
    classes = np.unique(np.concatenate([labels.ravel(), predictions.ravel()]))
    true, said = ((x[..., None, :] == classes[:, None]) for x in (labels, predictions))
    return true.sum(axis=-1), said.sum(axis=-1), (true & said).sum(axis=-1)


def matthews(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Matthews correlation of classes along the last axis; 0 where one side is constant, as scikit-learn has it."""
    true, said, both = (x.astype(np.float64) for x in _counts(labels, predictions))
    n = labels.shape[-1]
    covariance = both.sum(axis=-1) * n - (true * said).sum(axis=-1)
    spread = np.sqrt((n * n - (true ** 2).sum(axis=-1)) * (n * n - (said ** 2).sum(axis=-1)))
    return np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > 0)


def f1_macro(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """The mean over classes, of those that occur, of each class's F1."""
    true, said, both = (x.astype(np.float64) for x in _counts(labels, predictions))
    present = true + said > 0
    f1 = np.divide(2 * both, true + said, out=np.zeros_like(both), where=present)
    return f1.sum(axis=-1) / present.sum(axis=-1)


def interval(statistic: Callable[..., np.ndarray], data: tuple[np.ndarray, ...], resamples: int,
             confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of paired [n] arrays, examples resampled together.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; scipy.stats.bootstrap. Resamples where
    the statistic is undefined (few rows, all labels equal) are left out.
    """
    (low, high), = intervals(lambda *d: statistic(*d)[None], data, resamples, confidence, seed)
    return low, high


def intervals(statistics: Callable[..., np.ndarray], data: tuple[np.ndarray, ...], resamples: int,
              confidence: float, seed: int) -> list[tuple[float, float]]:
    """The same of several statistics, which come as the first axis of one array, on the same resamples."""
    from scipy.stats import bootstrap

    def along(*arrays: np.ndarray, axis: int) -> np.ndarray:
        return statistics(*(np.moveaxis(a, axis, -1) for a in arrays))

    with warnings.catch_warnings(action="ignore"):      # of undefined resamples
        found = bootstrap(data, along, n_resamples=resamples, paired=True, vectorized=True, method="percentile",
                          batch=100, rng=np.random.default_rng(seed)).bootstrap_distribution
        tail = (1 - confidence) / 2
        bounds = np.nanquantile(found, [tail, 1 - tail], axis=-1)
    return [(float(low), float(high)) for low, high in bounds.T]
