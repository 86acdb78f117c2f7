"""A sample of the training texts is not far, other texts are, and what cannot be compared is refused."""

import shutil

import numpy as np
import pytest

from steps import batching, drift
from tests.project import ROOT, Project


@pytest.mark.parametrize("distance, one, other, expected", [
    (drift.kolmogorov_smirnov, [1, 2, 3], [1, 2, 3], 0.0),
    (drift.kolmogorov_smirnov, [1, 2, 3, 4], [3, 4, 5, 6], 0.5),
    (drift.jensen_shannon, [[2, 0], [2, 0]], [[1, 0]], 0.0),
    (drift.jensen_shannon, [[1, 0]], [[0, 3]], 1.0),
    (drift.total_variation, [[1, 0], [1, 0]], [[1, 0], [0, 1]], 0.5),
    (drift.cosine, [[1, 0], [3, 0]], [[5, 0]], 0.0),
    (drift.cosine, [[1, 0]], [[0, 2]], 1.0)])
def test_a_distance_is_what_its_name_says(distance, one, other, expected):
    assert distance(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-7)


def test_each_text_counts_its_own_tokens():
    assert drift.counts([[1, 1, 3], [0]]).toarray().tolist() == [[0, 2, 0, 1], [1, 0, 0, 0]]


@pytest.fixture
def copy(finished, tmp_path, inside) -> Project:
    copy = Project(shutil.copytree(finished.folder, tmp_path / "project", symlinks=True), finished.environment)
    copy.edit("drift.min_rows", 40)
    inside(copy)
    return copy


def lines(path, texts) -> str:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


def test_every_second_training_text_is_near_and_a_words_repetition_is_far(copy, tmp_path, evergreen):
    found = batching.texts(copy / "data/prepared/sts/train.arrow", ("sentence1", "sentence2"))
    near = evergreen("drift", "sts", lines(tmp_path / "near.txt", [*found["sentence1"], *found["sentence2"]][::2]))
    assert (near.code, near.out.count("drift")) == (0, 0)
    assert near.out.startswith("sts@1: 48 texts against those it was trained on\n")
    far = evergreen("drift", "sts", lines(tmp_path / "far.txt", ["washer washer washer washer"] * 60))
    assert far.code == 0
    assert [line.split()[0] for line in far.out.splitlines() if line.endswith("drift")] == [
        "length", "vocabulary", "centroid"]


def test_too_few_texts_and_other_data_than_the_versions_are_refused(copy, tmp_path, evergreen):
    few = evergreen("drift", "sts", ROOT / "samples/appliances/test.csv", "--column", "none")
    assert few.code == 2
    few = evergreen("drift", "sts", lines(tmp_path / "few.txt", ["one"] * 39))
    assert (few.code, few.out) == (2, "")
    assert "has 39 texts and drift.min_rows in params.yaml asks for 40" in few.err
    summary = copy / "data/prepared/sts/summary.json"
    summary.write_text(summary.read_text().replace("train.csv", "other.csv"), encoding="utf-8")
    other = evergreen("drift", "sts", lines(tmp_path / "more.txt", ["one"] * 40))
    assert other.code == 2 and "is not what sts@1 was trained on" in other.err
