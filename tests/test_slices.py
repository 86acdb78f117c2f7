"""Parts of the test set: thirds by length, labels and sources, each with its score."""

import numpy as np

from steps import evaluate, params, statistics, tasks
from steps.schema import Evaluate
from tests.project import ROOT


def by_hand(labels: list[int], said: list[int], texts: dict[str, list[str]]) -> dict[str, dict]:
    """The slices of classes `no` and `yes`, by accuracy, of a model alone."""
    cola = params.load(ROOT / "params.yaml").recipe("cola")
    cola = cola.model_copy(update={"prepare": cola.prepare.model_copy(update={"labels": ["no", "yes"]}),
                                   "evaluate": Evaluate(batch_size=1, resamples=100, confidence=0.95)})
    return evaluate.slices(statistics.accuracy, tasks.get("classes"), np.array(labels), {"model": np.array(said)},
                           texts, cola, 0)


def test_slices_by_hand():
    """10 texts of one word, 10 of two and 10 of three; 15 labels of each; every third text of a letter."""
    texts = {"text": ["a"] * 10 + ["a b"] * 10 + ["a b c"] * 10, "source": ["letter", "talk", "talk"] * 10}
    labels = [0] * 15 + [1] * 15
    said = [0] * 10 + [1] * 10 + [0] * 4 + [1] * 6      # right: 0 to 9, 15 to 19 and 24 to 29
    found = {name: (part["rows"], part["model"]) for name, part in by_hand(labels, said, texts).items()}
    assert found == {
        "length: short": (10, 1.0), "length: medium": (10, 0.5), "length: long": (10, 0.6),
        "label: no": (15, round(10 / 15, 6)), "label: yes": (15, round(11 / 15, 6)),
        "source: letter": (10, 0.8), "source: talk": (20, 0.65)}


def test_parts_of_fewer_than_ten_rows_are_no_slices():
    texts = {"text": ["a"] * 21, "source": ["letter"] * 9 + ["talk"] * 12}
    found = by_hand([0] * 9 + [1] * 12, [1] * 21, texts)
    assert {name: part["rows"] for name, part in found.items()} == {
        "length: short": 21, "label: yes": 12, "source: talk": 12}


def test_a_slice_without_a_score_is_left_out():
    """Every label of the letters is the same: no correlation, and no line that says nan."""
    sts = params.load(ROOT / "params.yaml").recipe("sts")
    sts = sts.model_copy(update={"evaluate": Evaluate(batch_size=1, resamples=100, confidence=0.95)})
    texts = {"sentence1": ["a"] * 24, "sentence2": ["b"] * 24, "source": ["letter"] * 12 + ["talk"] * 12}
    labels = np.array([0.5] * 12 + [*np.linspace(0, 1, 12)])
    found = evaluate.slices(statistics.spearman, tasks.get("sts"), labels, {"model": np.arange(24.0)}, texts, sts, 0)
    assert list(found) == ["length: short", "source: talk"]
    assert found["source: talk"]["model"] == 1
