"""The sample data: enough rows, clean text, known labels, splits that share no sentence."""

import csv
import json
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from steps import params, prepare, recipes
from tests.conftest import findings
from tests.project import ROOT

FOLDER = ROOT / "samples"
SPLITS = ("train", "dev", "test")
TABLES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*.csv"))
TEXTS = {"appliances": ("sentence1", "sentence2"), "acceptability": ("sentence",), "moods": ("text",),
         "statements": ("anchor", "positive", "negative"), "translations": ("english", "non_english")}
PROJECT = params.load(ROOT / "params.yaml")


def rows(file: str) -> list[dict[str, str]]:
    with open(FOLDER / file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, strict=True))


def reports() -> list[dict]:
    return [json.loads(line) for line in (FOLDER / "reports/train.jsonl").read_text(encoding="utf-8").splitlines()]


def folded(text: str) -> str:
    """A sentence less what a reader would not count as a difference."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def texts(file: str, *columns: str) -> list[str]:
    return [folded(row[column]) for row in rows(file) for column in columns]


# Every file


def test_every_sample_file_is_declared_but_the_pairs():
    """The pairs are there for those who want the loss softmax."""
    declared = {f"{name}/{file}" for name, entry in PROJECT.datasets.local.items() for file in entry.split_files()}
    here = {path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*")}
    assert here - declared == {"statements/train_pairs.csv"} and declared <= here


@pytest.mark.parametrize("file", [*TABLES, "reports/train.jsonl"])
def test_the_text_is_clean(file):
    content = (FOLDER / file).read_bytes()
    assert not content.startswith(b"\xef\xbb\xbf") and content.endswith(b"\n")
    text = content.decode("utf-8")
    assert {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn")} == {"\n"}
    if file in TABLES:
        assert len(text.splitlines()) == len(rows(file)) + 1      # no sentence holds a newline
        for row in rows(file):
            for value in row.values():
                assert value and value == value.strip() and "  " not in value


@pytest.mark.parametrize("recipe, least", [("sts", 900), ("nli", 400), ("cola", 700), ("emotion", 800),
                                           ("tsdae", 1500), ("mlm", 150)])
def test_every_row_is_one_that_its_recipe_learns_from(recipe, least):
    settings, module = PROJECT.recipe(recipe), recipes.get(recipe)
    name = Path(settings.dataset).name
    files = [FOLDER / name / file for file in PROJECT.datasets.local[name].split_files()]
    found = findings(FOLDER)
    assert len(list(prepare.train_rows(module, settings, files, found))) >= least
    assert found.quarantined == {}


def test_every_pair_is_one_that_softmax_learns_from():
    nli = PROJECT.recipe("nli")
    settings = nli.model_copy(update={"prepare": nli.prepare.model_copy(update={"train_rows": "pairs"})})
    files, found = [FOLDER / "statements/train_pairs.csv"], findings(FOLDER)
    assert {row["label"] for row in prepare.train_rows(recipes.get("nli"), settings, files, found)} == {0, 1, 2}
    assert found.quarantined == {}


@pytest.mark.parametrize("name", ["nli", "multilingual"])
def test_every_row_of_a_further_task_is_one_that_it_judges(name):
    settings = PROJECT.recipe(name)
    entry, = settings.tasks.values()
    dataset = Path(settings.suite).name
    suite = {entry.test: [FOLDER / dataset / PROJECT.datasets.local[dataset].splits[entry.test][0]]}
    found = findings(FOLDER)
    assert len(prepare.task_rows(entry, settings, suite, entry.test, "tasks/it", found)) > 200
    assert found.quarantined == {}


@pytest.mark.parametrize("folder", TEXTS)
def test_no_text_stands_in_two_splits(folder):
    found = {path.stem: set(texts(f"{folder}/{path.name}", *TEXTS[folder]))
             for path in sorted((FOLDER / folder).glob("*.csv")) if path.stem in SPLITS}
    assert {"train", "test"} <= set(found)
    for one, other in combinations(found, 2):
        assert found[one] & found[other] == set(), (one, other)


# Appliances


def test_there_are_three_splits_of_at_least_900_pairs():
    found = {split: rows(f"appliances/{split}.csv") for split in SPLITS}
    assert sum(map(len, found.values())) >= 900
    assert len(found["train"]) > len(found["test"]) >= 100 and len(found["dev"]) >= 100
    assert {tuple(row) for split in found.values() for row in split} == {("sentence1", "sentence2", "score")}


@pytest.mark.parametrize("file", [*(f"appliances/{split}.csv" for split in SPLITS), "translations/sts_de.csv"])
def test_scores_go_from_0_to_5_in_half_steps_and_have_both_ends(file):
    scores = {float(row["score"]) for row in rows(file)}
    assert scores <= {half / 2 for half in range(11)}
    assert {0.0, 5.0} <= scores


@pytest.mark.parametrize("files", [[f"appliances/{split}.csv" for split in SPLITS], ["translations/sts_de.csv"]])
def test_no_pair_stands_twice_in_either_order_and_none_is_a_sentence_with_itself(files):
    pairs = [frozenset((folded(row["sentence1"]), folded(row["sentence2"]))) for file in files for row in rows(file)]
    assert len(set(pairs)) == len(pairs)
    assert all(len(pair) == 2 for pair in pairs)


# Statements


def test_no_text_of_the_triplets_stands_there_twice():
    """Texts that stand twice would be each other's negatives in a batch."""
    for split in SPLITS:
        found = texts(f"statements/{split}.csv", *TEXTS["statements"])
        assert len(set(found)) == len(found), split


def test_the_pairs_tell_of_the_triplets_of_train():
    """Each anchor three times: with its positive, its negative and a third that may be true or not."""
    pairs = {(row["premise"], row["hypothesis"]): row["label"] for row in rows("statements/train_pairs.csv")}
    triplets = rows("statements/train.csv")
    assert {pairs[row["anchor"], row["positive"]] for row in triplets} == {"entailment"}
    assert {pairs[row["anchor"], row["negative"]] for row in triplets} == {"contradiction"}
    anchors = Counter(premise for premise, _ in pairs)
    assert set(anchors) == {row["anchor"] for row in triplets} and set(anchors.values()) == {3}
    assert Counter(pairs.values()) == dict.fromkeys(("entailment", "neutral", "contradiction"), len(triplets))


# Acceptability and moods


@pytest.mark.parametrize("file", [file for file in TABLES if file.startswith(("acceptability/", "moods/"))])
def test_no_text_is_labelled_twice(file):
    found = texts(file, *TEXTS[file.split("/")[0]])
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("file, labels", [
    ("acceptability/train.csv", {"0", "1"}), ("acceptability/test.csv", {"0", "1"}),
    *((f"moods/{split}.csv", {"sadness", "joy", "love", "anger", "fear", "surprise"}) for split in SPLITS)])
def test_every_label_of_the_schema_occurs_and_no_other(file, labels):
    assert {row["label"] for row in rows(file)} == labels


def test_every_kind_of_sentence_is_large_enough_in_train_and_occurs_in_test():
    kinds = {split: Counter(row["kind"] for row in rows(f"acceptability/{split}.csv")) for split in ("train", "test")}
    assert set(kinds["train"]) == set(kinds["test"])
    assert min(kinds["train"].values()) >= 20


# Translations and reports


def test_each_side_of_a_translation_stands_there_once():
    for column in TEXTS["translations"]:
        found = [text for split in SPLITS for text in texts(f"translations/{split}.csv", column)]
        assert len(set(found)) == len(found)


def test_what_is_translated_is_of_the_train_questions_and_the_german_pairs_are_not():
    """The German pairs are translations from the test questions, none of which a student may see."""
    english = {text for split in SPLITS for text in texts(f"translations/{split}.csv", "english")}
    german = {text for split in SPLITS for text in texts(f"translations/{split}.csv", "non_english")}
    questions = {split: set(texts(f"appliances/{split}.csv", "sentence1", "sentence2")) for split in SPLITS}
    pairs = set(texts("translations/sts_de.csv", "sentence1", "sentence2"))
    assert english <= questions["train"]
    assert english & (questions["dev"] | questions["test"]) == set()
    assert pairs & (german | english | questions["train"]) == set()


def test_the_german_pairs_have_no_more_of_a_score_than_the_test_split_they_come_from():
    german, whole = (Counter(float(row["score"]) for row in rows(file)) for file in (
        "translations/sts_de.csv", "appliances/test.csv"))
    assert german <= whole


def test_each_report_is_a_text_of_its_own_with_a_number():
    found = reports()
    assert [report["id"] for report in found] == [*range(len(found))]
    assert all(set(report) == {"id", "text"} for report in found)
    assert len({folded(report["text"]) for report in found}) == len(found) >= 100


def test_no_report_holds_a_question_that_models_are_judged_on():
    whole = " ".join(folded(report["text"]) for report in reports())
    questions = texts("appliances/dev.csv", *TEXTS["appliances"]) + texts("appliances/test.csv", *TEXTS["appliances"])
    assert [question for question in questions if question.rstrip(".?!") in whole] == []
