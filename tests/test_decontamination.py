"""What training shares with evaluation is dropped and listed, in either order and however it is written."""

import random

import pytest

from steps import decontamination
from tests.conftest import findings
from tests.project import ROOT
from tests.test_contract import PAIRS, kept, listed, pairs, sts

DATA = ROOT.parent / "shared/data"


def without(tmp_path, train: list[tuple], test: list[tuple], single: bool = False, **contract) -> tuple[list, dict]:
    """The rows of train that stay, and the counts of train/test."""
    def rows(texts: list[tuple]) -> tuple[list[dict], list[str]]:
        names = [f"text{n}" for n in range(len(texts[0]))]
        return [dict(zip(names, row, strict=True)) for row in texts], names

    found = findings(tmp_path, **contract)
    evaluation = decontamination.Evaluation(found.contract, found)
    evaluation.add("test", *rows(test), single=single)
    left = [tuple(row.values()) for row in evaluation.without(*rows(train))]
    return left, found.overlaps["train/test"]


@pytest.mark.parametrize("ours, theirs, same", [
    (("The drum is full",), ("the  DRUM is\tfull ",), True),
    (("ﬁne",), ("fine",), True),
    (("The drum is full",), ("The drum is full!",), False),
    (("a", "b"), ("b", "a"), True),
    (("a", "b"), ("a", "c"), False),
    (("a", "b", "c"), ("b", "a", "d"), True),          # the anchor with its positive
    (("a", "b", "c"), ("a", "d", "c"), True),          # the anchor with its negative
    (("a", "b", "c"), ("d", "b", "c"), False),
])
def test_examples_are_the_same_in_other_case_spacing_and_order(tmp_path, ours, theirs, same):
    left, counts = without(tmp_path, [ours, tuple("xyz")[:len(ours)]], [theirs], similarity=1.0)
    assert (len(left), counts["dropped"]) == ((1, 1) if same else (2, 0))


def test_plain_text_is_held_against_each_text_of_a_pair(tmp_path):
    left, counts = without(tmp_path, [("one",), ("two",), ("three",)], [("ONE", "four"), ("five", "two")], single=True)
    assert left == [("three",)] and counts["distinct"] == 2


@pytest.mark.parametrize("ours, theirs, single", [
    (("a", "b", "c"), [("a", "b", "c"), ("d", "e", "f")], False),          # anchor and positive, anchor and negative
    (("one", "two"), [("one",), ("two",), ("three",), ("four",)], True)])
def test_a_row_that_holds_several_examples_of_evaluation_leaks_all_of_them(tmp_path, ours, theirs, single):
    left, counts = without(tmp_path, [ours], theirs, single=single)
    assert (left, counts["dropped"], counts["leaked"]) == ([], 1, 0.5)


def test_what_is_dropped_is_listed_with_what_it_equals(look):
    test = pairs(20, split="test")
    one, other, score = test[5]
    found = look("sts", **sts(pairs(200, [other.upper(), one, score])))
    row, = [row for row in listed(found, "overlaps.csv") if row["kind"] == "exact"]
    assert row == {"split": "test", "kind": "exact", "similarity": "1.000", "train": f"{other.upper()} | {one}",
                   "evaluation": f"{one} | {other}"}
    assert len(kept(found)["sentence1"]) == 200 and found.stops == []


def test_a_leak_of_a_tenth_stops(look):
    """2 of 20 test pairs stand in train: 10 %, and 5 % are allowed; 1 of 20 is just that."""
    test = pairs(20, split="test")
    stopped = look("sts", **sts(pairs(200, test[3], test[4])))
    assert stopped.stops[0].startswith("10.0% of test stands in train too, such as ")
    assert look("sts", **sts(pairs(200, test[3]))).stops == []
    assert look("sts", contract={"leaked": 0.2}, **sts(pairs(200, test[3], test[4]))).stops == []


def test_a_leaked_triplet_is_a_row_whichever_negative_it_has(tmp_path):
    """Anchor and positive of 10 of 100 test rows stand in train, with other negatives, as mined ones are."""
    test = [(f"an anchor {n}", f"its positive {n}", f"its negative {n}") for n in range(100)]
    train = [(anchor, positive, "mined") for anchor, positive, _ in test[:10]]
    left, counts = without(tmp_path, train, test)
    assert (left, counts["dropped"], counts["leaked"]) == ([], 10, 0.1)


def test_the_tasks_of_the_suite_are_evaluation_too(look):
    more = [["a", "p", "n"], *([f"an anchor {n}", f"its positive {n}", f"its negative {n}"] for n in range(30))]
    task = {"task": "triplet", "test": "more", "columns": {"anchor": "a", "positive": "p", "negative": "n"}}
    found = look("sts", **sts(pairs(200, ["its positive 7", "an anchor 7", "5"]), more=more), tasks={"triplets": task})
    assert found.overlaps["train/tasks/triplets"]["dropped"] == 1


def test_what_test_has_too_is_no_row_of_dev(look):
    test = pairs(20, split="test")
    one, other, score = test[7]
    found = look("sts", **sts(dev=[*pairs(20, split="dev"), [other.upper(), one, score]]))
    assert found.overlaps["dev/test"] == {"dropped": 1, "distinct": 1, "examples": [f"{other.upper()} | {one}"]}
    assert found.written["dev"]["rows"] == 20 and found.stops == []
    assert "dev: 1 rows left out that stand in test too" in found.said()


def test_a_dev_that_is_in_part_test_is_refused(look):
    dev = [*pairs(18, split="dev"), *pairs(20, split="test")[1:3]]
    stop, = look("sts", contract={"leaked": 0.05}, **sts(dev=dev)).stops
    assert stop.startswith("10.0% of dev stands in test too, such as '") and "more than the allowed 5.0%" in stop


SENTENCE = "the dishwasher leaks water on the kitchen floor every time it starts to rinse the plates"


@pytest.mark.parametrize("action, rows", [("report", 2), ("drop", 1)])
def test_near_duplicates_are_shown_and_dropped_on_demand(tmp_path, action, rows):
    ours = SENTENCE.replace("plates", "glasses")
    left, counts = without(tmp_path, [(ours,), ("something else entirely",)], [(SENTENCE,)], near_duplicates=action)
    assert len(left) == rows and counts["near"] == 1 and counts["dropped"] == 0
    (first, second, similarity), = counts["near_examples"]
    shingles = [{text[i:i + 5] for i in range(len(text) - 4)} for text in (ours, SENTENCE)]
    assert (first, second) == (ours, SENTENCE)
    assert similarity == round(len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1]), 3) > 0.8


def test_planted_near_duplicates_are_found(tmp_path):
    """Of 200 sentences with one word more, MinHash finds all that are at least as alike as asked."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnop", k=6)) for _ in range(500)]
    test = [(" ".join(generator.choices(words, k=12)),) for _ in range(200)]
    train = [(f"{text} {generator.choice(words)}",) for text, in test]
    left, counts = without(tmp_path, train, test)
    assert counts["near"] >= 196 and len(left) == 200


def test_repeats_and_labels_that_differ_are_counted():
    rows = [{"text": text, "label": label} for text, label in (
        ("one", 0), ("One ", 1), ("two", 0), ("two", 0), ("three", 1))]
    assert decontamination.repeats(rows, ["text"]) == {
        "repeated": 2, "letter": 1, "conflicting": 1, "examples": ["one"]}


# The real sets


def real(look, recipe: str, prepare: dict | None = None, **files: str):
    if not DATA.exists():
        pytest.skip("the real data sets are not beside this repository")
    contents = {f"{split}{''.join((DATA / file).suffixes)}": (DATA / file).read_bytes()
                for split, file in files.items()}
    return look(recipe, contract={"unknown": 1.0, "truncated": 1.0}, files=contents, prepare=prepare)


def test_the_sts_benchmark_shares_seven_pairs_with_test_and_six_with_dev(look):
    """Letter for letter; turned round or in other case, five more and one more. One of dev's stands in test too."""
    found = real(look, "sts", {"columns": {**dict(zip(PAIRS, PAIRS, strict=True)), "score": "similarity_score"}},
                 train="stsb/en-train.csv.gz", dev="stsb/en-dev.csv.gz", test="stsb/en-test.csv.gz")
    counts = found.overlaps["train/test"], found.overlaps["train/dev"]
    assert [c["letter"] for c in counts] == [7, 5] and [c["distinct"] for c in counts] == [12, 6]
    assert found.overlaps["dev/test"]["dropped"] == 3 and found.stops == []
    assert found.written["dev"]["rows"] == 1497


def test_the_emotion_set_shares_eleven_texts_with_test_and_five_with_validation(look):
    found = real(look, "emotion", train="emotion/train.csv.gz", dev="emotion/validation.csv.gz",
                 test="emotion/test.csv.gz")
    assert [found.overlaps[f"train/{split}"]["distinct"] for split in ("test", "dev")] == [11, 5]
    assert found.repeats["train"]["repeated"] == 31 and found.repeats["train"]["conflicting"] == 30


def test_cola_repeats_19_sentences_11_of_them_with_both_labels(look):
    """Two more differ in case alone."""
    header = ["from", "label", "mark", "sentence"]
    found = real(look, "cola", {"header": header, "columns": {"text": "sentence", "label": "label", "source": "from"}},
                 train="cola/in_domain_train.tsv", dev="cola/in_domain_dev.tsv", test="cola/out_of_domain_dev.tsv")
    counts = found.repeats["train"]
    assert (counts["letter"], counts["repeated"], counts["conflicting"]) == (19, 21, 11)
    assert [row["line"] for row in listed(found)] == ["7130", "7131", "7132"]       # they hold backspaces
