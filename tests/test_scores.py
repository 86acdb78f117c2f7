"""The tables of an evaluation: which lines, in which order, as text and as Markdown."""

import json
from pathlib import Path

import pytest

from steps import params, scores
from steps.scores import Table
from tests.project import ROOT


def measured(metric: str, rows: int, **values: tuple[float, float, float]) -> dict:
    """{"base": (value, low, high)} -> one test set as evaluate writes it."""
    flat = {f"{who}{end}": value for who, found in values.items()
            for end, value in zip(("", "_low", "_high"), found, strict=True)}
    return {"rows": rows, "metric": metric, metric: flat, "slices": {}}


OWN = measured("accuracy_cosine", 90, base=(0.6, 0.5, 0.7), model=(0.75, 0.65, 0.85), gain=(0.15, 0.05, 0.25))
FURTHER = measured("spearman_cosine", 714, base=(0.3, 0.2, 0.4), model=(0.25, 0.15, 0.35), gain=(-0.05, -0.1, 0.0))
OTHER = measured("accuracy_cosine", 90, model=(0.8, 0.7, 0.9))
OTHER_FURTHER = measured("spearman_cosine", 714, model=(0.5, 0.4, 0.6))


def written(folder: Path, own: dict, **tasks: dict) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({**own, "tasks": tasks}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def project() -> params.Project:
    return params.load(ROOT / "params.yaml")


def test_the_own_test_comes_first_and_each_further_task_has_its_table(project, tmp_path):
    test = written(tmp_path / "test", OWN, appliances=FURTHER)
    assert scores.tables("nli", project.recipe("nli"), test, {}) == [
        Table("nli", "accuracy_cosine", 90,
              [("base model", 0.6, 0.5, 0.7), ("new model", 0.75, 0.65, 0.85), ("gain", 0.15, 0.05, 0.25)]),
        Table("nli on appliances", "spearman_cosine", 714,
              [("base model", 0.3, 0.2, 0.4), ("new model", 0.25, 0.15, 0.35), ("gain", -0.05, -0.1, 0.0)])]


def test_the_base_of_a_classifier_is_the_majority_class(project, tmp_path):
    found = measured("f1_macro", 180, base=(0.1, 0.1, 0.1), model=(0.5, 0.4, 0.6), gain=(0.4, 0.3, 0.5))
    table, = scores.tables("emotion", project.recipe("emotion"), written(tmp_path / "test", found), {})
    assert [who for who, *_ in table.lines] == ["majority class", "new model", "gain"]


def test_another_model_stands_below_by_its_name_in_every_table(project, tmp_path):
    test = written(tmp_path / "test", OWN, appliances=FURTHER)
    other = written(tmp_path / "other", OTHER, appliances=OTHER_FURTHER)
    own, further = scores.tables("nli", project.recipe("nli"), test, {"published": other})
    assert own.lines[3:] == [("published", 0.8, 0.7, 0.9)]
    assert further.lines[3:] == [("published", 0.5, 0.4, 0.6)]


def test_another_model_that_was_not_scored_on_a_task_is_not_in_its_table(project, tmp_path):
    test = written(tmp_path / "test", OWN, appliances=FURTHER)
    own, further = scores.tables("nli", project.recipe("nli"), test, {"published": written(tmp_path / "other", OTHER)})
    assert [len(own.lines), len(further.lines)] == [4, 3]


def test_the_text_has_its_columns_below_each_other():
    table = Table("sts", "spearman_cosine", 714, [("base model", 0.81234, 0.8, 0.82), ("gain", -0.05, -0.1, 0.0)])
    assert scores.text(table, 0.95) == [
        "sts: spearman_cosine on 714 held-out test rows",
        "                 score   95 % interval",
        "  base model    0.8123   0.8000 to 0.8200",
        "  gain         -0.0500   -0.1000 to 0.0000"]


def test_a_long_name_widens_the_text():
    table = Table("sts", "spearman_cosine", 714, [("all-MiniLM-L12-v2", 0.5, 0.4, 0.6), ("gain", 0.1, 0.0, 0.2)])
    assert scores.text(table, 0.95)[1:] == [
        "                      score   95 % interval",
        "  all-MiniLM-L12-v2  0.5000   0.4000 to 0.6000",
        "  gain               0.1000   0.0000 to 0.2000"]


def test_the_markdown_is_a_table():
    table = Table("sts", "spearman_cosine", 714, [("base model", 0.81234, 0.8, 0.82)])
    assert scores.markdown(table, 0.95) == [
        "| sts: spearman_cosine on 714 test rows | value | 95 % interval |",
        "|---|---|---|",
        "| base model | 0.8123 | 0.8000 to 0.8200 |",
        ""]


@pytest.mark.parametrize(("confidence", "said"), [(0.9, "90 % interval"), (0.975, "97.5 % interval")])
def test_the_interval_is_labelled_with_its_confidence(confidence, said):
    table = Table("sts", "spearman_cosine", 714, [("base model", 0.5, 0.4, 0.6)])
    assert scores.text(table, confidence)[1].endswith(f"   {said}")
    assert scores.markdown(table, confidence)[0].endswith(f"| {said} |")


def test_each_slice_has_its_rows_and_the_gain_with_its_interval():
    part = measured("f1_macro", 60, base=(0.1, 0.05, 0.15), model=(0.5, 0.4, 0.6), gain=(0.4, 0.3, 0.5))
    metrics = {"metric": "f1_macro", "slices": {"length: short": {"rows": 60, **part["f1_macro"]}}}
    assert scores.slices(metrics) == [
        "By slice, f1_macro (of a single label: the share found):", "",
        "| slice | rows | base | this model | gain | low | high |",
        "|---|---|---|---|---|---|---|",
        "| length: short | 60 | 0.1000 | 0.5000 | 0.4000 | 0.3000 | 0.5000 |", ""]


def test_no_slice_makes_no_table():
    assert scores.slices({"metric": "f1_macro", "slices": {}}) == []
