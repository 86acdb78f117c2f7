"""Every way in which data is known to be wrong ends in a listed row or a refusal that names the place."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from steps import batching, classification, download, params, provenance, recipes
from steps.schema import InputError
from steps.sources import LocalDataset
from tests.project import ROOT
from tests.test_contract import ALL, PAIRS, kept, listed, moods, pairs, sts

HEADER = "sentence1,sentence2,score\n"
PAIR = '"the drum is full","it does not drain",'


def csv_of(*rows: str, header: str = HEADER, good: int = 20) -> str:
    """A train file of good rows that a few given lines stand among."""
    rest = "".join(f"the drum number {n} is full,the lid number {n} is open,{n % 6}\n" for n in range(good))
    return header + rest + "".join(f"{row}\n" for row in rows)


def stop(found) -> str:
    assert found.stops, "nothing stops a run"
    return "\n".join(found.stops)


def row_01_missing_column_no_header_semicolons_duplicate_header(look):
    for content, said in ((csv_of(header="sentence1,score\n"), "train.csv: column 'sentence2' is missing"),
                          (csv_of(header=""), "train.csv: column 'sentence1' is missing"),
                          (csv_of().replace(",", ";"), "column 'sentence1' is missing; the file has 'sentence1;"),
                          (csv_of(header="sentence1,score,score\n"), "train.csv: column 'score' stands twice")):
        assert said in stop(look("sts", **sts(content)))


def row_02_a_score_that_is_nan_empty_or_na(look):
    for value in ("NaN", "", "NA"):
        assert f"train.csv:22: score = {value!r} is not a number" in stop(look("sts", **sts(csv_of(PAIR + value))))
        row, = listed(look("sts", **sts(csv_of(PAIR + value, good=200))))
        assert (row["line"], row["value"]) == ("202", value)


def row_03_a_score_that_is_infinite(look):
    for value in ("inf", "-Infinity", "1e999"):
        assert f"train.csv:22: score = {value!r} is " in stop(look("sts", **sts(csv_of(PAIR + value))))


def row_04_scores_of_another_range(look):
    assert "rows are bad" in stop(look("sts", prepare={"score_range": [0.0, 1.0]}, **sts(csv_of())))


def row_05_a_score_in_words_or_with_a_comma(look):
    for value, written in (("four", "four"), ("1,5", '"1,5"')):
        assert f"train.csv:22: score = {value!r} is not a number such as 4 or 2.5" in stop(
            look("sts", **sts(csv_of(PAIR + written))))


def row_06_texts_that_look_like_nothing(look):
    words = ["null", "None", "NA", "nan"]
    assert kept(look("sts", **sts(csv_of(*(f"{w},{w} too,3" for w in words)))))["sentence1"][-4:] == words


def row_07_texts_that_look_like_numbers(look):
    words = ["007", "1e5", "True"]
    assert kept(look("sts", **sts(csv_of(*(f"{w},{w} too,3" for w in words)))))["sentence1"][-3:] == words


def row_08_a_field_more_on_every_row(look):
    rows = "".join(f"{n},the drum number {n},the lid number {n},3\n" for n in range(20))
    assert "train.csv:2: 4 fields where the header has 3" in stop(look("sts", **sts(HEADER + rows)))


def row_09_a_field_more_on_one_row(look):
    assert "train.csv:22: 4 fields where the header has 3; quote a text" in stop(
        look("sts", **sts(csv_of("the drum, it is full,the lid,3"))))


def row_10_a_short_row_and_a_file_cut_short(look, tmp_path):
    assert "train.csv:22: 2 fields where the header has 3" in stop(look("sts", **sts(csv_of("the drum,the lid"))))
    assert "train.csv:22: score = '4.' is not a number" in stop(look("sts", **sts(csv_of(PAIR + "4."))))
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.csv").write_text(whole := csv_of(PAIR + "4.25"), encoding="utf-8")
    entry = LocalDataset(path=str(source), licence="MIT", splits={"train": ["train.csv"]},
                         sha256={"train.csv": provenance.sha256(source / "train.csv")})
    download.download("it", entry, "dataset", tmp_path / "copy")
    (source / "train.csv").write_text(whole[:-2], encoding="utf-8")         # 4.2 is a score too
    with pytest.raises(InputError, match=r"it: train.csv has sha256 .* it was cut or changed"):
        download.download("it", entry, "dataset", tmp_path / "copy")


def row_11_stray_quotes_that_join_rows(look):
    assert "train.csv:22: a quote joins lines 22 to 23" in stop(
        look("sts", **sts(csv_of('"a drum of 14,the lid,3', 'a belt of 15",the other,4'))))
    assert "train.csv:22: a quote joins lines 22 to 23" in stop(
        look("sts", **sts(csv_of('"a drum of 1,000,the lid,3', 'a belt of 15",the other,4'))))
    assert "train.csv:22: " in stop(look("sts", **sts(csv_of('"a drum,the lid,3'))))
    texts = ['one, "two"\nand, three, four', "one\ntwo"]
    rows = pairs(20, *([text, "b", "3"] for text in texts))
    assert kept(look("sts", **sts(rows)))["sentence1"][-2:] == texts


def row_12_other_encodings(look):
    latin = csv_of('caf\u00e9,"x",3').encode("latin-1")
    assert "train.csv:22: byte 0xe9 is not UTF-8" in stop(look("sts", **sts(latin)))
    assert "train.csv:1: byte 0xff is not UTF-8" in stop(look("sts", **sts(csv_of().encode("utf-16"))))


def row_13_nul_and_control_characters(look):
    for character in "\0\x08\x1b":
        assert "train.csv:22: sentence1 = " in (said := stop(look("sts", **sts(csv_of(f"a{character}b,x,3")))))
        assert "has a control character" in said


def row_14_half_a_surrogate_pair(look):
    good = [json.dumps({"sentence1": f"drum {n}", "sentence2": f"lid {n}", "score": n % 6}) for n in range(20)]
    lines = "\n".join([*good, '{"sentence1": "\\ud83d", "sentence2": "x", "score": 3}'])
    splits = sts()
    del splits["train"]
    said = stop(look("sts", files={"train.jsonl": lines.encode()}, **splits))
    assert "train.jsonl:21: sentence1 = '\\ud83d' has half a surrogate pair" in said


def row_15_empty_texts(look):
    for text in ("", "  ", "\t"):
        assert "train.csv:22: sentence1 = " in (said := stop(look("sts", **sts(csv_of(f'"{text}",x,3')))))
        assert "is empty" in said


def row_16_a_text_of_5_megabytes(look):
    assert "(5000000 characters)' is longer than 100000 characters" in stop(
        look("sts", **sts(csv_of("a b c d e " * 500_000 + ",x,3"))))
    long = look("sts", **sts(csv_of(*("drum " * 300 + f"{n},x {n},3" for n in range(6)))))
    assert long.written["train"]["truncated"] == 6 and "11.5% of the texts are cut" in stop(long)


def row_17_text_in_another_script(look):
    rows = "".join(f"ᚠᚢᚦ ᚨᚱᚲ {n},ᚷᚹᚺ ᚾᛁᛃ {n},{n % 6}\n" for n in range(20))
    assert "of the tokens are unknown to" in stop(look("sts", **sts(HEADER + rows)))


def row_18_one_row(look):
    assert "the train split has 1 rows" in stop(look("sts", **sts(csv_of(good=1))))
    assert "train has 5 rows, fewer than contract.min_rows" in stop(look("sts", **sts(csv_of(good=5))))
    values = params.read(ROOT / "params.yaml")["recipes"]["nli"]
    values["train"]["batch_size"] = 1
    with pytest.raises(ValueError, match="batch_size 1 learns nothing"):
        recipes.get("nli").Params.model_validate(values)


def row_19_equal_texts_in_a_batch_of_negatives(look):
    assert recipes.get("nli").Params.model_validate(
        params.read(ROOT / "params.yaml")["recipes"]["nli"]).train.no_duplicates
    keys = np.array([[0, n + 1] for n in range(6)])         # six rows with one anchor
    batches = batching.LengthGroupedBatches(np.full(6, 5), 3, 1, 0, keys)
    batches.set_epoch(0)
    batches = list(batches)
    assert [len(batch) for batch in batches] == [1] * len(batches)


def row_20_a_label_that_is_not_in_the_schema(look):
    found = look("emotion", train=moods(*ALL * 4, "rage"), dev=moods(*ALL, start=100), test=moods(*ALL, start=200))
    assert "train.csv:26: label = 'rage' is not a label of the schema; labels are sadness, joy" in stop(found)


def row_21_the_label_minus_100(look):
    found = look("emotion", train=moods(*ALL * 4, "-100"), dev=moods(*ALL, start=100), test=moods(*ALL, start=200))
    assert "train.csv:26: label = '-100' is not a label of the schema" in stop(found)


def row_22_classes_trained_as_a_number(tiny_model):
    values = params.read(ROOT / "params.yaml")["recipes"]["emotion"]
    settings = recipes.get("emotion").Params.model_validate(values)
    config = classification.load(tiny_model, settings, new_head=True).config
    assert (config.problem_type, config.num_labels) == ("single_label_classification", 6)
    values["prepare"]["labels"] = ["joy"]
    with pytest.raises(ValueError, match="at least 2 items"):
        recipes.get("emotion").Params.model_validate(values)


def row_23_one_class_alone_or_some_that_are_not_there(look):
    some = {"dev": moods(*ALL, start=100), "test": moods(*ALL, start=200)}
    assert "train has no row of sadness, love" in stop(look("emotion", train=moods(*["joy"] * 20), **some))
    assert "train has no row of anger, fear, surprise" in stop(look("emotion", train=moods(*ALL[:3] * 7), **some))


def changed_tokenizer(tiny_model: Path, folder: Path, change) -> Path:
    """The tiny model, said to be trained with its own tokenizer, and then given another."""
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "lineage.json").write_text(json.dumps({"vocabulary_sha256": provenance.digest(tokenizer.get_vocab())}))
    text = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(text)
    (folder / "tokenizer.json").write_text(json.dumps(text), encoding="utf-8")
    Tokenizer.from_file(str(folder / "tokenizer.json"))
    return folder


def row_24_a_vocabulary_in_another_order(look, tiny_model, tmp_path):
    def permute(text: dict) -> None:
        words = [word for word in text["model"]["vocab"] if not word.startswith("[")]
        numbers = [text["model"]["vocab"][word] for word in words]
        text["model"]["vocab"] |= dict(zip(words, reversed(numbers), strict=True))

    model = changed_tokenizer(tiny_model, tmp_path / "permuted", permute)
    assert "its tokenizer is not the one it was trained with" in stop(look("sts", base_model=model, **sts()))


def row_25_a_vocabulary_larger_than_the_model(look, tiny_model, tmp_path):
    def enlarge(text: dict) -> None:
        text["model"]["vocab"] |= {f"further{n}": len(text["model"]["vocab"]) + n for n in range(5)}

    model = changed_tokenizer(tiny_model, tmp_path / "larger", enlarge)
    (model / "lineage.json").unlink()
    assert "use the tokenizer that was published with the model" in stop(look("sts", base_model=model, **sts()))


def row_26_rows_of_test_in_train(look):
    test = pairs(20, split="test")
    found = look("sts", **sts(pairs(200, [test[1][1], test[1][0], "3"])))
    assert found.overlaps["train/test"]["dropped"] == 1 and found.stops == []
    assert "10.0% of test stands in train too" in stop(look("sts", **sts(pairs(200, *test[1:3]))))


def row_27_constant_gold_scores(look):
    test = [PAIRS, *([*row[:2], "5"] for row in pairs(20, split="test")[1:])]
    assert "every score of test is the same" in stop(look("sts", **sts(test=test)))


def test_a_length_that_the_model_has_no_positions_for(look):
    assert stop(look("sts", prepare={"max_length": 129}, **sts())).startswith(
        "recipes.sts.prepare.max_length = 129: ")


ROWS = {name: row for name, row in sorted(globals().items()) if name.startswith("row_")}


def test_the_table_has_27_rows():
    assert [int(name.split("_")[1]) for name in ROWS] == list(range(1, 28))


@pytest.mark.parametrize("name", ROWS)
def test_bad_input(name, request):
    row = ROWS[name]
    row(*(request.getfixturevalue(fixture) for fixture in row.__code__.co_varnames[:row.__code__.co_argcount]))
