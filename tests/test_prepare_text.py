"""Plain text -> numbered sentences, some of them held out, and what the noise leaves of the first."""

import csv
import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from steps import params, prepare, recipes, sentences, writing
from steps.schema import InputError, Recipe
from tests.conftest import LENIENT
from tests.project import ROOT, sample, write_rows


@pytest.fixture
def place(tmp_path, tiny_model, monkeypatch) -> Path:
    """A folder with a base model `tiny` and a suite that plain text is judged on, in which steps run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model)
    for split in ("dev", "test"):
        write_rows(tmp_path / f"suite/{split}.csv", sample(split, 10))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/source.json").write_text('{"name": "tests"}', encoding="utf-8")
    return tmp_path


def asked(recipe: str, **changes) -> Recipe:
    """The recipe of params.yaml on the data set `raw`, with other values under `prepare`."""
    values = params.read(ROOT / "params.yaml")["recipes"][recipe]
    values |= {"dataset": "raw", "base_model": "tiny", "suite": "suite"}
    values["contract"] |= LENIENT
    values["prepare"] |= changes
    if not values["prepare"]["held_out"]:
        values["train"]["metric"] = "spearman_cosine"
    return recipes.get(recipe).Params.model_validate(values)


def prepared(*documents: str, recipe: str = "tsdae", **changes) -> Path:
    """The folder that prepare fills from the documents."""
    Path("raw/train.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents), encoding="utf-8")
    prepare.prepare(recipes.get(recipe), asked(recipe, **changes), Path("prepared"))
    return Path("prepared")


def table(path: Path) -> dict[str, list]:
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_stream(source).read_all().to_pydict()


def parts(document: str, recipe: str = "tsdae", **changes) -> list[str]:
    return [row["text"] for row in sentences.examples({"text": document}, asked(recipe, **changes).prepare)]


def lines(count: int) -> list[str]:
    return [f"the machine number {n} is leaking" for n in range(count)]


# Documents to sentences


def test_a_document_is_cut_at_the_splitter():
    document = "The drum is full! Why does it\nnot drain? I opened the hatch..."
    assert parts(document) == ["The drum is full! Why does it", "not drain? I opened the hatch"]
    assert parts(document, splitter=r"[.?!\n]+") == ["The drum is full", "Why does it", "I opened the hatch"]


def test_a_document_without_a_splitter_is_one_text():
    assert parts("The drum is full.  Why does it\nnot drain?", "mlm") == ["The drum is full. Why does it not drain?"]


@pytest.mark.parametrize("least, kept", [(1, ["Yes", "It does", "It leaks"]), (7, ["It does", "It leaks"]),
                                         (8, ["It leaks"]), (9, [])])
def test_sentences_shorter_than_min_characters_are_left_out(least, kept):
    assert parts("Yes.  It   does. It leaks.", min_characters=least) == kept


def test_a_splitter_with_a_group_is_refused_or_splits_like_one_without():
    with pytest.raises(ValueError, match="group"):
        parts("The drum is full. Why does it\nnot drain", splitter=r"([.?!])|\n")


# What is written


def test_sentences_are_numbered_and_those_held_out_have_negative_numbers(place):
    """A quarter is held out: of the sentences 0 to 9 the ones numbered 3 and 7, as -4 and -8."""
    folder = prepared(". ".join(lines(6)), ". ".join(lines(10)[6:]), held_out=0.25)
    train, held_out = table(folder / "train.arrow"), table(folder / "held_out.arrow")
    assert train["row"] == [0, 1, 2, 4, 5, 6, 8, 9]
    assert held_out["row"] == [-4, -8]
    assert held_out["text"] == [lines(10)[3], lines(10)[7]]
    assert train["text"] == [line for n, line in enumerate(lines(10)) if n not in (3, 7)]


@pytest.mark.parametrize("share, rows", [(0.4, [2, 4, 7, 9]), (0.8, [1, 2, 3, 4, 6, 7, 8, 9])])
def test_the_share_that_is_held_out_is_the_one_asked_for(place, share, rows):
    assert table(prepared(*lines(10), held_out=share) / "held_out.arrow")["row"] == [-1 - row for row in rows]


def test_a_text_that_is_held_out_stands_in_train_no_other_time(place):
    """Of texts 4 and 8 a copy of the first comes later and is left out; the other was there before, and so the next is
    held out."""
    one = lines(10)
    folder = prepared(*one[:2], one[7].upper(), *one[3:8], *one[8:], one[3].upper(), held_out=0.25)
    train, held_out = table(folder / "train.arrow"), table(folder / "held_out.arrow")
    assert held_out["text"] == [one[3], one[8]]
    assert train["text"] == [*one[:2], one[7].upper(), *one[4:8], one[9]]
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))["overlaps"]
    assert found["train/held_out"]["dropped"] == 1
    assert len((folder / "overlaps.csv").read_text(encoding="utf-8").splitlines()) == 2


def test_to_select_by_the_loss_on_held_out_text_some_must_be_held_out():
    values = params.read(ROOT / "params.yaml")["recipes"]["mlm"]
    values["prepare"]["held_out"] = 0.0
    with pytest.raises(ValueError, match=r"train.metric is loss, which is that on held-out text, and prepare.held_out"):
        recipes.get("mlm").Params.model_validate(values)


def test_the_first_task_selects_and_reports_on_two_splits():
    values = params.read(ROOT / "params.yaml")["recipes"]["tsdae"]
    values["tasks"]["appliances"]["dev"] = "test"
    with pytest.raises(ValueError, match=r"the first of tasks has 'test' as dev and as test: a model would"):
        recipes.get("tsdae").Params.model_validate(values)


def test_without_a_share_nothing_is_held_out(place):
    folder = prepared(*lines(10), held_out=0.0)
    assert not (folder / "held_out.arrow").exists()
    assert table(folder / "train.arrow")["row"] == [*range(10)]


def test_too_few_sentences_to_hold_out_a_share_are_refused(place):
    with pytest.raises(InputError, match="3 sentences are too few to hold out a share of"):
        prepared(*lines(3), held_out=0.25)


@pytest.mark.parametrize("recipe", ["tsdae", "mlm"])
def test_a_limit_counts_sentences_and_ends_reading_there(place, recipe):
    """The fifth line is no JSON; with a limit of 4 sentences it is never read."""
    one = json.dumps({"text": "the machine is leaking"}) + "\n"
    two = json.dumps({"text": "the machine is leaking. the drum is full"}) + "\n"
    (place / "raw/train.jsonl").write_text(two * 2 + one * 2 + "{\n", encoding="utf-8")
    module = recipes.get(recipe)
    prepare.prepare(module, asked(recipe, limit=4, held_out=0.0), Path("prepared"))
    assert len(table(place / "prepared/train.arrow")["row"]) == 4
    with pytest.raises(InputError, match=":5: not a JSON object"):
        prepare.prepare(module, asked(recipe, limit=None, held_out=0.0), Path("prepared"))


def test_a_sentence_the_tokenizer_leaves_nothing_of_is_left_out(place):
    """Zero-width spaces are no words, and no control characters either."""
    folder = prepared("the machine is leaking", "\u200b" * 16, "the drum is full", held_out=0.0)
    assert table(folder / "train.arrow")["row"] == [0, 2]
    assert json.loads((folder / "summary.json").read_text())["splits"]["train"]["rows"] == 2


def test_text_of_nothing_but_short_sentences_is_refused(place):
    with pytest.raises(InputError, match="no row is left for train; look at the data and at prepare in params"):
        prepared("No. Yes. No.")


@pytest.mark.parametrize("recipe", ["tsdae", "mlm"])
def test_the_first_task_is_dev_and_test_and_no_further_task(place, recipe):
    folder = prepared(*lines(60), recipe=recipe)
    for split in ("dev", "test"):
        wanted = sample(split, 10)[1:]
        assert table(folder / f"{split}.arrow")["sentence1"] == [row[0] for row in wanted]
    assert list((folder / "tasks").iterdir()) == []


def test_lines_of_a_plain_text_file_are_documents(place):
    (place / "raw/train.txt").write_text("the machine is leaking\n\nthe drum is full\n", encoding="utf-8")
    prepare.prepare(recipes.get("mlm"), asked("mlm", held_out=0.0), Path("prepared"))
    assert table(place / "prepared/train.arrow")["text"] == ["the machine is leaking", "the drum is full"]


# Words and noise


@pytest.mark.parametrize("word_ids, starts", [([None, 0, 0, 1, None], [1, 3, 4]), ([None, 0, None], [1, 2]),
                                              ([0, 1, 1], [0, 1, 3]), ([None, None], [])])
def test_words_start_where_their_first_token_stands(word_ids, starts):
    assert writing.word_starts(word_ids) == starts


@pytest.mark.parametrize("max_length", [8, 64])
def test_the_tokens_between_two_starts_are_a_word(place, max_length):
    """Letters and blanks alone: what stands between blanks is a word; a cut text has the words before the cut."""
    text = "condensation accumulates underneath the refrigerator drawers overnight"
    found = table(prepared(text, max_length=max_length, held_out=0.0) / "train.arrow")
    ids, (*starts, end) = found["text_input_ids"][0], found["text_word_starts"][0]
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    words = [tokenizer.decode(ids[a:b]) for a, b in zip(starts, [*starts[1:], end], strict=True)]
    assert starts[0] == 1 and end == len(ids) - 1
    if max_length == 64:
        assert words == text.split()
    else:
        assert len(ids) == 8 and words[:-1] == text.split()[:len(words) - 1]


def test_words_are_kept_for_noise_alone(place):
    assert "text_word_starts" not in table(prepared(*lines(20), recipe="mlm") / "train.arrow")
    assert not Path("prepared/noised.tsv").exists()


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


@pytest.mark.parametrize("ratio", [0.2, 0.6])
def test_fifty_sentences_are_written_with_what_the_noise_leaves_of_them(place, ratio):
    with open(ROOT / "samples/reports/train.jsonl", encoding="utf-8") as reports:
        documents = [json.loads(line)["text"] for line in reports][:20]
    folder = prepared(*documents, noise={"kind": "delete", "ratio": ratio})
    with open(folder / "noised.tsv", encoding="utf-8", newline="") as file:
        header, *pairs = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    assert header == ["sentence", "noised"]
    assert len(pairs) == 50
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    for (sentence, noised), ids in zip(pairs, table(folder / "train.arrow")["text_input_ids"], strict=False):
        assert sentence == tokenizer.decode(ids, skip_special_tokens=True)
        left = iter(words(sentence))
        assert noised and all(word in left for word in words(noised)), (sentence, noised)
    whole, kept = (sum(len(words(text)) for text in column) for column in zip(*pairs, strict=True))
    assert kept / whole == pytest.approx(1 - ratio, abs=0.1)


def test_fewer_than_fifty_sentences_are_all_shown(place):
    assert len((prepared(*lines(12), held_out=0.0) / "noised.tsv").read_text().splitlines()) == 1 + 12


def test_masked_words_are_shown_as_such(place):
    folder = prepared(*lines(60), noise={"kind": "mask", "ratio": 0.5})
    _, *rows = (folder / "noised.tsv").read_text().splitlines()
    sentences, noised = zip(*(row.split("\t") for row in rows), strict=True)
    assert not any("[MASK]" in sentence for sentence in sentences)
    assert sum("[MASK]" in sentence for sentence in noised) > 40
