"""Parallel sentences and a teacher -> the same sentences with the teacher's vectors of the English side."""

import csv
import gzip
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from steps import embedding, reading, teach
from steps.schema import InputError
from steps.sources import Teacher
from tests.project import write_rows

HEADER = ["english", "non_english"]
PAIRS = [["The filter is dirty.", "Der Filter ist schmutzig."], ["It is loud.", "Es ist laut."],
         ["The filter is dirty.", "Le filtre est sale."], ["The door of the oven does not shut.", "Die Tür klemmt."]]


@pytest.fixture
def place(tmp_path, tiny_model, monkeypatch) -> Path:
    """A folder with a teacher and a data set without splits, in which steps run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/source.json").write_text('{"name": "talks", "licence": "none"}', encoding="utf-8")
    return tmp_path


def asked(**changes) -> Teacher:
    columns = {"english": "english", "non_english": "non_english"}
    return Teacher(**{"dataset": "raw", "model": "tiny", "columns": columns, "max_length": 16, "pooling": "mean",
                      "batch_size": 2} | changes)


def refusal() -> str:
    with pytest.raises(InputError) as caught:
        teach.teach(asked(), Path("taught/talks"))
    assert list(Path().glob("taught/*")) == []
    return str(caught.value)


def test_each_pair_has_the_vector_of_its_english_side(place):
    write_rows(place / "raw/train.csv", [HEADER, *PAIRS])
    teach.teach(asked(), Path("taught/talks"))
    found = pq.read_table("taught/talks/train.parquet").to_pydict()
    assert [list(pair) for pair in zip(found["english"], found["non_english"], strict=True)] == PAIRS
    theirs = embedding.encoder(Path("tiny"), 16, "mean").encode([english for english, _ in PAIRS])
    assert np.array(found["vector"], np.float32) == pytest.approx(theirs, abs=1e-6)


def test_a_teacher_with_another_tokenizer_than_it_was_trained_with_is_refused(place, tiny_model):
    write_rows(place / "raw/train.csv", [HEADER, *PAIRS])
    Path("tiny").unlink()
    shutil.copytree(tiny_model, "tiny")
    Path("tiny/lineage.json").write_text(json.dumps({"vocabulary_sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(InputError, match=r"^tiny: its tokenizer is not the one it was trained with; train it"):
        teach.teach(asked(), Path("taught/talks"))
    assert not Path("taught").exists()


def test_a_length_that_the_teacher_has_no_positions_for_is_refused(place):
    write_rows(place / "raw/train.csv", [HEADER, *PAIRS])
    with pytest.raises(InputError, match=r"^teachers.talks.max_length = 129: tiny has positions for 128 tokens of a"):
        teach.teach(asked(max_length=129), Path("taught/talks"))


def test_where_a_row_is_from_goes_with_it(place):
    write_rows(place / "raw/train.csv", [["from", *HEADER], *([f"book {n % 2}", *p] for n, p in enumerate(PAIRS))])
    columns = {"english": "english", "non_english": "non_english", "source": "from"}
    teach.teach(asked(columns=columns), Path("taught/talks"))
    found = pq.read_table("taught/talks/train.parquet").to_pydict()
    assert found["source"] == ["book 0", "book 1", "book 0", "book 1"]
    assert [list(pair) for pair in zip(found["english"], found["non_english"], strict=True)] == PAIRS


def test_vectors_are_float32_of_one_length(place):
    write_rows(place / "raw/train.csv", [HEADER, *PAIRS])
    teach.teach(asked(), Path("taught/talks"))
    assert str(pq.read_schema("taught/talks/train.parquet").field("vector").type) == (
        "fixed_size_list<element: float>[32]")


def test_fewer_dimensions_are_the_principal_components_of_train(place, capsys):
    """By hand: the eigenvectors of the covariance of train's distinct sentences, up to their signs."""
    write_rows(place / "raw/dev.csv", [HEADER, *PAIRS])
    write_rows(place / "raw/train.csv", [HEADER, *([f"{a} {n}", b] for n in range(4) for a, b in PAIRS)])
    for folder, dimensions in (("whole", None), ("less", 3)):
        teach.teach(asked(dimensions=dimensions), Path(folder))
    vectors = {(folder, split): np.array(pq.read_table(f"{folder}/{split}.parquet")["vector"].to_pylist(), np.float32)
               for folder in ("whole", "less") for split in ("train", "dev")}
    distinct = np.unique(vectors["whole", "train"], axis=0)
    values, directions = np.linalg.eigh(np.cov(distinct.T))
    for split in ("train", "dev"):
        theirs = vectors["whole", split] @ directions[:, ::-1][:, :3]
        assert np.abs(vectors["less", split]) == pytest.approx(np.abs(theirs), abs=1e-4)
    said = f"32 dimensions of the teacher become 3, with {values[::-1][:3].sum() / values.sum():.1%} of the variance"
    assert said in capsys.readouterr().out


def test_more_dimensions_are_zeros_that_change_no_distance(place):
    write_rows(place / "raw/train.csv", [HEADER, *PAIRS])
    for folder, dimensions in (("whole", None), ("more", 40)):
        teach.teach(asked(dimensions=dimensions), Path(folder))
    whole, more = (np.array(pq.read_table(f"{folder}/train.parquet")["vector"].to_pylist()) for folder in
                   ("whole", "more"))
    assert (more[:, :32] == whole).all() and (more[:, 32:] == 0).all() and more.shape[1] == 40


@pytest.mark.parametrize("split, count", [("train", 3), ("dev", 0)])
def test_fewer_dimensions_than_train_can_tell_are_refused(place, split, count):
    write_rows(place / f"raw/{split}.csv", [HEADER, *PAIRS])
    with pytest.raises(InputError, match=rf"^teachers.talks.dimensions = 4: .* and train has {count}; give more, or"):
        teach.teach(asked(dimensions=4), Path("taught/talks"))
    assert list(Path().glob("taught/*")) == []


def test_a_sentence_that_stands_there_twice_is_embedded_once(place, monkeypatch, capsys):
    write_rows(place / "raw/train.csv", [HEADER, *PAIRS])
    asked_for = []
    embed = embedding.embed
    monkeypatch.setattr(embedding, "embed", lambda model, texts, size: asked_for.extend(texts) or embed(
        model, texts, size))
    teach.teach(asked(), Path("taught/talks"))
    assert len(asked_for) == 3
    assert capsys.readouterr().out == "train: 4 pairs, 3 distinct English sentences embedded\n"
    vectors = pq.read_table("taught/talks/train.parquet").to_pydict()["vector"]
    assert vectors[0] == vectors[2] != vectors[1]


def test_the_result_is_a_data_set_that_names_the_teacher(place):
    for split in ("train", "dev", "test"):
        write_rows(place / f"raw/{split}.csv", [HEADER, *PAIRS])
    teach.teach(asked(), Path("taught/talks"))
    assert set(reading.splits(Path("taught/talks"))) == {"train", "dev", "test"}
    weights = hashlib.sha256(Path("tiny/model.safetensors").read_bytes()).hexdigest()
    teacher = {"model": "tiny", "weights_sha256": weights}
    assert json.loads(Path("taught/talks/source.json").read_text()) == {
        "name": "talks", "licence": "none", "teacher": teacher}
    teach.teach(asked(dimensions=40), Path("taught/more"))
    assert json.loads(Path("taught/more/source.json").read_text())["teacher"] == teacher | {"dimensions": 40}


def test_splits_of_other_names_stay_as_they_are(place):
    write_rows(place / "raw/train.csv", [HEADER, *PAIRS])
    write_rows(place / "raw/sts_de.csv", [["sentence1", "sentence2", "score"], ["a", "b", "1"]])
    teach.teach(asked(), Path("taught/talks"))
    assert Path("taught/talks/sts_de.csv").read_bytes() == (place / "raw/sts_de.csv").read_bytes()


def test_columns_of_other_names_are_found(place):
    write_rows(place / "raw/train.csv", [["de", "id", "en"], *([b, "1", a] for a, b in PAIRS)])
    teach.teach(asked(columns={"english": "en", "non_english": "de"}), Path("taught/talks"))
    found = pq.read_table("taught/talks/train.parquet").to_pydict()
    assert [list(pair) for pair in zip(found["english"], found["non_english"], strict=True)] == PAIRS


def test_two_text_files_are_the_two_sides(place):
    (place / "raw/train.1.txt").write_text("".join(f"{a}\n" for a, _ in PAIRS), encoding="utf-8")
    (place / "raw/train.2.txt.gz").write_bytes(gzip.compress("".join(f"{b}\n" for _, b in PAIRS).encode()))
    teach.teach(asked(), Path("taught/talks"))
    found = pq.read_table("taught/talks/train.parquet").to_pydict()
    assert [list(pair) for pair in zip(found["english"], found["non_english"], strict=True)] == PAIRS


def test_two_text_files_of_different_lengths_are_refused_with_both_counts(place):
    (place / "raw/train.1.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    (place / "raw/train.2.txt").write_text("eins\nzwei\n", encoding="utf-8")
    assert refusal() == ("raw/train.1.txt has 3 lines and raw/train.2.txt 2; parallel files have one line for each "
                         "sentence, in the same order")


@pytest.mark.parametrize("pair, column", [(["", "leer"], "english"), (["empty", " "], "non_english")])
def test_a_pair_with_an_empty_side_is_quarantined_by_the_recipe(place, look, pair, column):
    write_rows(place / "raw/train.csv", [HEADER, *PAIRS, pair, *PAIRS])
    teach.teach(asked(), Path("taught/talks"))
    files = {"train.parquet": Path("taught/talks/train.parquet").read_bytes()}
    found = look("multilingual", {"min_rows": 1, "bad_rows": 0.2, "unknown": 1.0}, files)
    line, = list(csv.DictReader((found.folder / "quarantine.csv").read_text(encoding="utf-8").splitlines()))
    assert (line["line"], line["column"], line["rule"]) == ("5", column, "is empty; write the text or remove the row")


@pytest.mark.parametrize("key", ["english", "non_english", "source"])
def test_half_a_surrogate_pair_is_named_by_its_line(place, key):
    rows = [{"english": "one", "non_english": "eins", "source": "a book"} for _ in range(3)]
    rows[2][key] = "half \ud83d"
    (place / "raw/train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        teach.teach(asked(columns={name: name for name in rows[0]}), Path("taught/talks"))
    assert str(caught.value) == (f"raw/train.jsonl:3: {key} has half a surrogate pair, which is no character; write "
                                 "the whole character")


def test_an_empty_line_of_parallel_text_keeps_its_place(place):
    (place / "raw/train.1.txt").write_text("one\n\nthree\n", encoding="utf-8")
    (place / "raw/train.2.txt").write_text("eins\nzwei\ndrei\n", encoding="utf-8")
    teach.teach(asked(), Path("taught/talks"))
    found = pq.read_table("taught/talks/train.parquet").to_pydict()
    assert found["english"] == ["one", "", "three"] and found["non_english"] == ["eins", "zwei", "drei"]


def test_a_split_without_rows_is_refused(place):
    write_rows(place / "raw/train.csv", [HEADER])
    assert refusal() == "raw/train.csv has no rows"


def test_a_missing_column_is_named_with_those_present(place):
    write_rows(place / "raw/train.csv", [["english", "german"], *PAIRS])
    assert refusal().startswith("raw/train.csv: column 'non_english' is missing; the file has 'english', 'german';")


def test_teaching_again_replaces_what_was_there(place):
    write_rows(place / "raw/train.csv", [HEADER, *PAIRS])
    write_rows(place / "raw/dev.csv", [HEADER, *PAIRS])
    teach.teach(asked(), Path("taught/talks"))
    first = Path("taught/talks/train.parquet").read_bytes()
    (place / "raw/dev.csv").unlink()
    teach.teach(asked(), Path("taught/talks"))
    assert sorted(p.name for p in Path("taught").rglob("*")) == ["source.json", "talks", "train.parquet"]
    assert Path("taught/talks/train.parquet").read_bytes() == first
