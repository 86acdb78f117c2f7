"""Rows that break a rule are listed and left out; too many of them, or data that teaches nothing, stop a run."""

import csv
import json

import pyarrow as pa
import pytest

from steps import contract, sentences
from tests.conftest import findings
from tests.project import ROOT, sample

DATA = ROOT.parent / "shared/data"
PAIRS = ["sentence1", "sentence2", "score"]


def pairs(count: int, *more: list[str], split: str = "train") -> list[list[str]]:
    return [*sample(split, count), *more]


def sts(train: list[list[str]] | None = None, **more) -> dict:
    """Splits of good pairs, but for what is given."""
    return {"train": train or pairs(200), "dev": pairs(20, split="dev"), "test": pairs(20, split="test")} | more


def listed(found, name: str = "quarantine.csv") -> list[dict]:
    if not (path := found.folder / name).exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def kept(found, split: str = "train") -> dict[str, list]:
    with pa.OSFile(str(found.folder / f"{split}.arrow")) as source:
        return pa.ipc.open_stream(source).read_all().to_pydict()


# Quarantine


def test_a_bad_row_among_many_is_left_out_and_listed_with_file_line_and_rule(look):
    found = look("sts", **sts(pairs(200, ["a", "b", "9"])))
    assert found.stops == []
    row, = listed(found)
    assert row["file"].endswith("raw/train.csv")
    assert {key: row[key] for key in ("split", "line", "column", "rule", "value")} == {
        "split": "train", "line": "202", "column": "score", "rule": "is outside 0 to 5 (score_range)", "value": "9"}
    assert kept(found)["sentence1"] == [pair[0] for pair in pairs(200)[1:]]
    assert found.report()["splits"]["train"]["quarantined"] == {"score is outside 0 to 5 (score_range)": 1}


@pytest.mark.parametrize("bad, stops", [(1, False), (2, False), (3, True)])
def test_the_allowed_share_is_of_all_rows_that_were_read(look, bad, stops):
    """Of 198 to 200 good rows and a few bad ones, 2 in 200 are 1 % and 3 in 201 more."""
    found = look("sts", **sts(pairs(198, *[["a", "b", str(n + 9)] for n in range(bad)])))
    assert any("rows are bad, more than the allowed 1.0%" in stop for stop in found.stops) == stops
    assert len(listed(found)) == bad


def test_a_bad_row_of_an_evaluation_split_stops_too(look):
    found = look("sts", **sts(test=pairs(20, ["a", "", "3"], split="test")))
    assert found.stops[0].endswith("raw/test.csv:22: sentence2 = '' is empty; write the text or remove the row")
    assert found.stops[1].startswith("test: 1 of 21 rows are bad")


def test_a_long_value_is_shown_in_part(look):
    found = look("sts", **sts(pairs(200, ["x" * 100_001, "b", "3"])))
    row, = listed(found)
    assert row["value"] == "x" * 80 + "... (100001 characters)"
    assert row["rule"] == "is longer than 100000 characters (contract.max_characters)"


def test_of_several_broken_rules_the_first_is_named(look):
    row, = listed(look("sts", **sts(pairs(200, ["", "a\0b", "x"]))))
    assert (row["column"], row["rule"]) == ("sentence1", "is empty; write the text or remove the row")


@pytest.mark.parametrize("text, rule", [
    ("a\0b", "has a control character; remove it"), ("a\x1bb", "has a control character; remove it"),
    ("a\x85b", "has a control character; remove it"), ("a\tb", None), ("a\nb", None), ("naïve 🙂 שלום", None),
    ("\ud800", "has half a surrogate pair, which is no character; write the whole character")])
def test_what_a_text_may_not_have(tmp_path, text, rule):
    columns = sentences.Columns(text="text")
    rules = contract.rules(columns, ["text"], None, (), findings(tmp_path).contract)
    assert contract.check([{"text": "good"}, {"text": text}], rules) == ({} if rule is None else {1: ("text", rule)})


def test_rows_are_checked_in_parts_and_keep_their_lines(look, monkeypatch):
    monkeypatch.setattr(contract, "CHUNK", 7)
    rows = pairs(200)
    for place in (7, 8, 150):
        rows[place] = ["a", "b", "none"]
    found = look("sts", contract={"bad_rows": 0.02}, **sts(rows))
    assert [row["line"] for row in listed(found)] == ["8", "9", "151"] and found.stops == []


def test_documents_are_checked_before_they_are_cut_and_an_empty_line_is_none(look):
    lines = [{"text": f"the machine number {n} is leaking. drum number {n} is full"} for n in range(200)]
    lines += [{"text": ""}, {"text": "the bell \u0007 rings"}]
    train = "".join(json.dumps(line) + "\n" for line in lines).encode()
    found = look("tsdae", files={"train.jsonl": train}, contract={"unknown": 1.0}, tasks={"it": {
        "task": "sts", "dev": "dev", "test": "test", "columns": dict(zip(PAIRS, PAIRS, strict=True)),
        "score_range": [0.0, 5.0]}}, dev=pairs(20, split="dev"), test=pairs(20, split="test"))
    assert found.stops == [] and [row["line"] for row in listed(found)] == ["202"]
    assert found.read["train"] == 202


# What teaches nothing


def moods(*labels: str, start: int = 0) -> list[list[str]]:
    return [["text", "label"], *([f"the message number {start + n} came", label] for n, label in enumerate(labels))]


ALL = ["sadness", "joy", "love", "anger", "fear", "surprise"]


@pytest.mark.parametrize("train, test, said", [
    (ALL * 4, ALL, []),
    (ALL[:3] * 6, ALL, ["train has no row of anger, fear, surprise: give some, or take the name out of labels"]),
    (ALL * 4, ["joy"] * 9, ["every row of test has the same label: a metric of one class says nothing"])])
def test_classes_that_are_not_there_are_named(look, train, test, said):
    found = look("emotion", train=moods(*train), dev=moods(*ALL, start=100), test=moods(*test, start=200))
    assert found.stops == said


def test_a_class_that_evaluation_lacks_is_noted(look):
    found = look("emotion", train=moods(*ALL * 4), dev=moods(*ALL, start=100), test=moods(*ALL[:4], start=200))
    assert found.stops == [] and found.notes == ["test has no row of fear, surprise"]


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_constant_scores_are_named(look, split):
    rows = [PAIRS, *([*pair[:2], "3"] for pair in sts()[split][1:])]
    assert look("sts", **sts(**{split: rows} if split != "train" else {}, train=rows if split == "train" else None)
                ).stops == [f"every score of {split} is the same: a metric of constant gold scores is not a number"]


def test_text_of_unknown_words_is_named_with_an_example(look):
    rows = [PAIRS, *([f"ᚠᚢᚦ ᚨᚱᚲ {n}", f"ᚷᚹᚺ ᚾᛁᛃ {n}", str(n % 6)] for n in range(20))]
    found = look("sts", contract={"unknown": 0.05}, **sts(rows))
    assert "train: " in found.stops[0] and "of the tokens are unknown to" in found.stops[0]
    assert "ᚷᚹᚺ" in found.stops[0] or "ᚠᚢᚦ" in found.stops[0]


def test_texts_of_unknown_words_alone_are_named_though_they_are_few_tokens(look):
    """A long word is one unknown token, and counts for little among those of other texts."""
    rows = [*sts()["train"], *(["ᚠ" * 60, f"ᚢ{n}" * 30, "3"] for n in range(2))]
    found = look("sts", contract={"unknown": 0.3}, **sts(rows))
    assert found.stops == [] and found.notes[0].startswith("in 4 texts of train every token is unknown to ")
    found = look("sts", contract={"unknown": 0.3}, **sts([*rows, *(["ᚠ" * 90, f"ᚢ{n}" * 30, "3"] for n in range(200))]))
    assert "of train" not in found.stops[0] and "every token is unknown" in found.stops[0]


def test_texts_that_are_cut_are_counted_and_too_many_stop(look):
    long = [PAIRS, *([" ".join(["drum"] * 200) + f" {n}", f"full {n}", str(n % 6)] for n in range(20))]
    found = look("sts", **sts(long))
    assert found.stops == ["train: 50.0% of the texts are cut, more than the allowed 10.0% (contract.truncated): raise "
                           "prepare.max_length, or allow more"]


def test_too_few_rows_are_named(look):
    assert look("sts", **sts(pairs(15))).stops == ["train has 15 rows, fewer than contract.min_rows (16)"]


@pytest.mark.parametrize("licence, allowed, bad", [
    ("MIT", None, False), ("mit", ["Apache-2.0", "MIT"], False), ("CC-BY-NC-4.0", ["Apache-2.0", "MIT"], True),
    (None, ["MIT"], True), ("MIT", [], True)])
def test_licences_that_are_not_allowed_are_named(tmp_path, licence, allowed, bad):
    assert bool(contract.unlicensed("data/raw/it", licence, findings(tmp_path, licences=allowed).contract)) == bad
