"""Tasks: rows of text -> examples or a plain refusal, and scores that equal the library's and those by hand."""

import csv

import numpy as np
import pytest
import sklearn.metrics
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    TranslationEvaluator,
    TripletEvaluator,
)

from steps import embedding, reading, tasks
from steps.tasks import classes, sts, translation, triplet
from tests.project import ROOT

SIMILARITIES = ["cosine", "dot", "manhattan", "euclidean"]
NO_LABELS = np.zeros(0)
PAIR = sts.Rows(columns=sts.Columns(sentence1="one", sentence2="two", score="grade"), score_range=[1.0, 5.0])
TRIPLET = triplet.Rows(columns=triplet.Columns(anchor="a", positive="p", negative="n"))
PARALLEL = translation.Rows(columns=translation.Columns(english="en", non_english="de"))
MOODS = classes.Rows(columns=classes.Columns(text="text", label="mood"), labels=["sad", "glad", "0"])


def sample(file: str, *columns: str) -> list[list[str]]:
    """The columns of a sample file."""
    with open(ROOT / "samples" / file, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [[row[c] for row in rows] for c in columns]


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return embedding.encoder(tiny_model, 32, "mean")


# Rows


@pytest.mark.parametrize("task, entry, row, example", [
    (sts, PAIR, {"one": "a", "two": "b", "grade": " 2 "}, {"sentence1": "a", "sentence2": "b", "label": 0.25}),
    (triplet, TRIPLET, {"a": "x", "p": "y", "n": "z"}, {"anchor": "x", "positive": "y", "negative": "z"}),
    (translation, PARALLEL, {"en": "yes", "de": "ja"}, {"english": "yes", "non_english": "ja"}),
    (classes, MOODS, {"text": "oh", "mood": "glad"}, {"text": "oh", "label": 1}),
])
def test_a_row_becomes_the_tasks_columns(task, entry, row, example):
    assert task.example(row, entry) == example
    assert [*task.TEXTS] == [name for name in example if name != "label"]


def test_where_a_row_is_from_stays_with_it():
    columns = classes.Columns(text="text", label="mood", source="book")
    row = {"text": "oh", "mood": "sad", "book": "p. 3"}
    assert classes.example(row, MOODS.model_copy(update={"columns": columns})) == {
        "text": "oh", "source": "p. 3", "label": 0}


@pytest.mark.parametrize("names, label, place", [
    (["sad", "glad"], "sad", 0), (["sad", "glad"], " glad ", 1), (["sad", "glad"], "1", 1),
    (["sad", "glad"], "2", None), (["1", "2", "3"], "1", 0), (["1", "2", "3"], "0", None),
    (["sad", "glad", "0"], "0", 2), (["sad", "glad", "0"], "1", None)])
def test_a_label_is_its_name_or_its_place_where_no_name_is_a_number(names, label, place):
    assert reading.label(label, names) == place


# Scores that equal the library's


def test_triplet_accuracies_are_the_librarys(encoder):
    texts = sample("statements/test.csv", "anchor", "positive", "negative")
    theirs = TripletEvaluator(*texts, similarity_fn_names=SIMILARITIES)(encoder)
    ours = triplet.scores(embedding.outputs(encoder, texts, 64), NO_LABELS)
    assert ours == {f"accuracy_{name}": pytest.approx(theirs[f"{name}_accuracy"]) for name in SIMILARITIES}
    assert 0 < ours["accuracy_cosine"] < 1


def test_correlations_of_pairs_are_the_librarys(encoder):
    one, two, score = sample("translations/sts_de.csv", "sentence1", "sentence2", "score")
    labels = np.array([float(s) / 5 for s in score])
    theirs = EmbeddingSimilarityEvaluator(one, two, labels.tolist(), similarity_fn_names=SIMILARITIES)(encoder)
    ours = sts.scores(embedding.outputs(encoder, [one, two], 64), labels)
    assert ours == {f"{kind}_{name}": pytest.approx(theirs[f"{kind}_{name}"], abs=1e-4)
                    for name in SIMILARITIES for kind in ("spearman", "pearson")}


def test_translation_accuracies_are_the_librarys(encoder):
    english, german = sample("translations/train.csv", "english", "non_english")
    theirs = TranslationEvaluator(english, german)(encoder)
    ours = translation.scores(embedding.outputs(encoder, [english, german], 64), NO_LABELS)
    assert ours == {name: pytest.approx(theirs[name]) for name in
                    ("src2trg_accuracy", "trg2src_accuracy", "mean_accuracy")}
    assert 0 < ours["mean_accuracy"] < 1


@pytest.mark.parametrize("count", [2, 6])
def test_scores_of_classes_are_scikit_learns(count):
    random = np.random.default_rng(count)
    labels, logits = random.integers(0, count, 50), random.normal(size=(50, count))
    said = logits.argmax(axis=1)
    assert classes.scores(logits, labels) == {
        "matthews_correlation": pytest.approx(sklearn.metrics.matthews_corrcoef(labels, said)),
        "f1_macro": pytest.approx(sklearn.metrics.f1_score(labels, said, average="macro")),
        "f1_micro": pytest.approx(sklearn.metrics.f1_score(labels, said, average="micro")),
        "accuracy": pytest.approx(sklearn.metrics.accuracy_score(labels, said))}


# Scores by hand


def test_a_triplet_is_right_where_the_anchor_lies_nearer_to_the_positive():
    """By cosine the first positive is nearer; by the dot product, and by both distances, the negative is."""
    anchor, positive, negative = (np.array(rows, np.float32) for rows in (
        [[1, 0], [1, 0]], [[0.1, 0], [0.6, 0.8]], [[1, 0.5], [-1, 0]]))
    assert triplet.scores([anchor, positive, negative], NO_LABELS) == {
        "accuracy_cosine": 1.0, "accuracy_dot": 0.5, "accuracy_manhattan": 0.5, "accuracy_euclidean": 0.5}
    assert triplet.prediction([anchor, positive, negative], NO_LABELS).tolist() == [1, 1]


def test_a_positive_as_near_as_the_negative_is_wrong():
    one = np.ones((1, 2), np.float32)
    assert triplet.prediction([one, one, one], NO_LABELS).tolist() == [0]


def test_a_translation_is_right_where_nothing_else_is_nearer():
    """The first pair finds each other; the second english text is nearest to the first german one, and the second
    german text to the second english one."""
    english = np.array([[1, 0], [0.6, 0.8]], np.float32)
    german = np.array([[0.9, 0.1], [-0.6, 0.8]], np.float32)
    assert translation.scores([english, german], NO_LABELS) == {
        "src2trg_accuracy": 0.5, "trg2src_accuracy": 1.0, "mean_accuracy": 0.75}
    assert translation.prediction([english, german], NO_LABELS).tolist() == [1.0, 0.5]


def test_one_sentence_in_two_languages_has_two_right_translations():
    """Rows 0 and 1 have the same English, in another batch by the last bits; each finds the other's as well."""
    english = np.array([[1, 0], [1 - 1e-7, 1e-4], [0, 1]], np.float32)
    others = np.array([[0.8, 0.1], [0.9, 0.05], [0, 1]], np.float32)
    assert translation.scores([english, others], NO_LABELS)["mean_accuracy"] == 1.0
    assert translation.scores([english, others[[2, 1, 0]]], NO_LABELS)["src2trg_accuracy"] == pytest.approx(2 / 3)


def test_translations_are_found_alike_in_blocks(monkeypatch):
    random = np.random.default_rng(1)
    pair = [random.normal(size=(25, 3)) for _ in range(2)]
    whole = translation.prediction(pair, NO_LABELS)
    monkeypatch.setattr(translation, "BLOCK", 7)
    assert translation.prediction(pair, NO_LABELS).tolist() == whole.tolist()


def test_the_error_of_a_student_is_against_the_teachers_vectors():
    """One text is off by 1 in one of two dimensions, of four numbers in all each way: a mean of 1/8 squared error."""
    teacher = np.array([[1, 0], [0, 1]], np.float32)
    other = np.array([[1, 1], [0, 1]], np.float32)
    assert translation.scores([teacher, other], teacher)["negative_mse"] == pytest.approx(-100 / 8)


@pytest.mark.parametrize("task, outputs", [
    (triplet, [np.full((2, 2), np.nan)] * 3), (translation, [np.full((2, 2), np.inf)] * 2),
    (classes, np.full((2, 3), np.nan)), (sts, [np.full((2, 2), np.nan)] * 2),
])
def test_outputs_that_are_not_finite_have_no_score(task, outputs):
    assert np.isnan(task.scores(outputs, np.array([0, 1]))[task.METRIC])


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_file_has_what_the_directory_promises(name):
    task = tasks.get(name)
    assert task.METRIC in task.STATISTICS
    assert task.Entry.model_fields["task"].annotation.__args__ == (name,)


@pytest.mark.parametrize("task, outputs, labels", [
    (triplet, [np.random.default_rng(n).normal(size=(20, 4)) for n in range(3)], np.ones(20)),
    (translation, [np.random.default_rng(n).normal(size=(20, 4)) for n in range(2)], np.ones(20)),
    (sts, [np.random.default_rng(n).normal(size=(20, 4)) for n in range(2)], np.linspace(0, 1, 20)),
    (classes, np.random.default_rng(1).normal(size=(20, 3)), np.arange(20) % 3),
])
def test_the_statistic_of_the_predictions_is_the_score(task, outputs, labels):
    predictions = task.prediction(outputs, labels)
    scores = task.scores(outputs, labels)
    assert {name: float(statistic(labels, predictions)) for name, statistic in task.STATISTICS.items()} == {
        name: pytest.approx(scores[name]) for name in task.STATISTICS}
