"""Two versions side by side: what differs is shown, what does not is said, neighbours are compared within a version."""

import json
import re
import shutil

import numpy as np
import pytest

from steps import compare, register, tracking
from tests.project import Project


@pytest.fixture(scope="module")
def two(finished, tmp_path_factory, environment) -> Project:
    """A copy of the finished project with sts@1 and sts@2, whose weights, scores and one prediction are others."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("two") / "project"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns(".evergreen"))
    project = Project(folder, environment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.chdir(folder)
        assert register.register("sts").number == 1
        weights = load_file("models/sts/model.safetensors")
        key = "embeddings.word_embeddings.weight"
        save_file({**weights, key: weights[key].flip(0).contiguous()}, "models/sts/model.safetensors",
                  {"format": "pt"})
        metrics = json.loads((folder / "evaluation/sts/test/metrics.json").read_text(encoding="utf-8"))
        metrics["spearman_cosine"] |= {"model": 0.5, "model_low": 0.4, "model_high": 0.6}
        (folder / "evaluation/sts/test/metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        predictions = folder / "evaluation/sts/test/predictions.csv"
        header, first, *rest = predictions.read_text(encoding="utf-8").splitlines()
        changed = ",".join([*first.split(",")[:2], "-0.900000", *first.split(",")[3:]])
        predictions.write_text("\n".join([header, changed, *rest]) + "\n", encoding="utf-8")
        project.edit("recipes.sts.train.epochs", 3)
        assert register.register("sts").number == 2
    return project


@pytest.fixture
def said(two, inside, evergreen) -> str:
    inside(two)
    done = evergreen("compare", "sts@1", "sts@2", "--sample", 20, "--neighbours", 3)
    assert done.code == 0, done.err
    return done.out


def test_what_differs_is_shown_side_by_side(two, said):
    rows = dict(re.findall(r"^  (\S+) +(\S.*\S)$", said, re.MULTILINE))
    assert said.splitlines()[0].split() == ["sts@1", "sts@2"]
    assert rows["train.epochs"].split() == ["1", "3"]
    assert "train.batch_size" not in rows and "dataset_sha256" not in rows
    assert rows["spearman_cosine"].endswith("0.5000 (0.4000 to 0.6000)")
    assert re.search(r"examples: 1 of 24 predictions differ \(4\.2 %\)\n  gold \S+ +\S+ +-0\.900000\n    \S", said)


def test_a_parameter_that_is_null_is_none_that_a_version_is_too_old_to_have():
    assert compare.section("parameters", {"train.dropout": "None"}, {}, ["train.dropout"]) == [
        "parameters: no difference"]
    assert len(compare.section("parameters", {"train.dropout": "0.1"}, {}, ["train.dropout"])) == 2


def test_the_neighbours_of_the_test_texts_are_compared_and_those_of_a_version_with_itself_are_all_the_same(
        said, evergreen):
    share = re.search(r"neighbours: of the 3 nearest of 20 test texts, (\S+) % are the same", said)
    assert 0 < float(share[1]) < 100
    same = evergreen("compare", "sts@2", "sts@2", "--sample", 20, "--neighbours", 3).out
    assert "of the 3 nearest of 20 test texts, 100.0 % are the same under both; the nearest one is for 100.0 %" in same
    assert "parameters: no difference" in same and "examples: 0 of 24 predictions differ (0.0 %)" in same


def test_neighbours_are_found_by_cosine():
    """By hand: (1, 0), (2, 1), (0, 1), (-1, 0); length says nothing."""
    vectors = np.array([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    assert compare.nearest(vectors, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]


def test_an_evaluation_that_a_later_version_of_the_same_run_replaced_is_not_shown_as_this_ones(
        two, inside, evergreen, tmp_path):
    inside(two)
    found = tracking.client()
    right = found.get_model_version("sts", "1").tags["evaluation_sha256"]
    found.set_model_version_tag("sts", "1", "evaluation_sha256", "0" * 64)
    said = evergreen("compare", "sts@1", "sts@2").out
    found.set_model_version_tag("sts", "1", "evaluation_sha256", right)
    assert "scores: not shown, because sts@1 no longer has the evaluation it was registered with" in said
    assert "examples" not in said


def test_other_test_rows_are_said(two, inside, evergreen):
    inside(two)
    found = tracking.client()
    right = found.get_model_version("sts", "1").tags["test_content_sha256"]
    found.set_model_version_tag("sts", "1", "test_content_sha256", "0" * 64)
    said = evergreen("compare", "sts@1", "sts@2").out
    found.set_model_version_tag("sts", "1", "test_content_sha256", right)
    assert "the test rows differ: the scores below are not of the same test" in said


@pytest.mark.parametrize(("arguments", "message"), [
    (("sts@1", "sts@9"), "'sts' has no version or alias '9'"), (("sts@1", "nli@1"), "no model 'nli' is registered"),
    (("sts@1", "sts@2", "--neighbours", "0"), "--sample 1000 --neighbours 0: a text of the sample needs"),
    (("sts@1", "sts@2", "--sample", "5"), "--sample 5 --neighbours 10: a text of the sample needs")])
def test_what_cannot_be_compared_is_named(two, inside, evergreen, arguments, message):
    inside(two)
    done = evergreen("compare", *arguments)
    assert (done.code, done.out) == (2, "") and done.err.startswith(f"error: {message}")


@pytest.mark.parametrize(("left", "right", "said"), [
    ("good", "bad", ["examples: 1 of 2 predictions differ (50.0 %)"]), ("good", "good", [
        "examples: 0 of 2 predictions differ (0.0 %)"])])
def test_of_a_classifier_the_share_of_changed_predictions_is_told(left, right, said):
    def side(second: str) -> compare.Side:
        rows = [{"gold": "good", "base": "good", "model": m, "sentence": t} for m, t in (("bad", "a"), (second, "b"))]
        return compare.Side("x@1", {}, {}, None, rows)
    assert compare.examples(side(left), side(right))[:1] == said
