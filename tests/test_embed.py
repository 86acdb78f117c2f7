"""Vectors from a registered model: the right numbers, in order, with the model's identity."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from steps.provenance import digest, sha256
from tests.project import ROOT, write_rows

ODD = ['a "quoted" text, with a comma', "  spaces around  ", "größer, 室外机 ❄", "x"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """70 texts of many lengths: with --batch-size 1, three chunks of 32, 32 and 6."""
    with open(ROOT / "samples/appliances/test.csv", encoding="utf-8", newline="") as lines:
        return ODD + [row["sentence2"] for row in csv.DictReader(lines)][:66]


@pytest.fixture(autouse=True)
def here(inside, finished) -> None:
    """This process works in the finished project."""
    inside(finished)


def vectors_by_hand(folder: Path, texts: list[str]) -> np.ndarray:
    """Mean pooling over the last hidden states of the trained BERT, one text at a time."""
    tokenizer, bert = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        return np.stack([bert(**tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
                              ).last_hidden_state[0].mean(0).numpy() for text in texts])


def read(path: Path) -> tuple[np.ndarray, dict]:
    """The vectors of an output file and the identity beside them."""
    if path.suffix == ".npy":
        return np.load(path), json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
    table = pq.read_table(path)
    return np.array(table["embedding"].to_pylist(), np.float32), json.loads(table.schema.metadata[b"evergreen"])


@pytest.mark.parametrize("target", ["vectors.parquet", "vectors.npy"])
@pytest.mark.parametrize("source", ["texts.txt", "texts.csv", "texts.tsv"])
def test_a_file_becomes_its_vectors_in_order(evergreen, finished, texts, tmp_path, source, target):
    if source == "texts.txt":
        (tmp_path / source).write_text("\n".join(texts) + "\n", encoding="utf-8")
    else:
        separator = {"texts.csv": ",", "texts.tsv": "\t"}[source]
        with open(tmp_path / source, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=separator).writerows([["id", "question"], *enumerate(texts)])
    column = [] if source == "texts.txt" else ["--column", "question"]
    done = evergreen("embed", "sts", tmp_path / source, tmp_path / target, "--batch-size", 1, *column)
    assert done.out == f"70 vectors of 32 dimensions in {tmp_path / target}, made by sts@1\n"
    vectors, _ = read(tmp_path / target)
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, vectors_by_hand(finished / "models/sts", texts), atol=1e-5)
    beside = {"vectors.npy.json"} if target == "vectors.npy" else set()
    assert {p.name for p in tmp_path.iterdir()} == {source, target} | beside


def test_parquet_keeps_the_texts_and_the_type_of_the_vectors(evergreen, texts, tmp_path):
    write_rows(tmp_path / "texts.csv", [["text"], *[[text] for text in texts]])
    evergreen("embed", "sts", tmp_path / "texts.csv", tmp_path / "vectors.parquet")
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table["text"].to_pylist() == texts
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[32]"


def test_half_a_surrogate_pair_is_named_by_its_line(evergreen, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "good"}\n\n{"text": "half \\ud83d"}\n', encoding="utf-8")
    for command in (["embed", "sts", tmp_path / "texts.jsonl", tmp_path / "vectors.npy"],
                    ["drift", "sts", tmp_path / "texts.jsonl"]):
        done = evergreen(*command)
        assert (done.code, done.out) == (2, "")
        assert done.err == (f"error: {tmp_path}/texts.jsonl:3: the text has half a surrogate pair, which is no "
                            "character; write the whole character\n")
    assert not (tmp_path / "vectors.npy").exists()


@pytest.mark.parametrize("target", ["vectors.parquet", "vectors.npy"])
def test_the_identity_of_the_model_lies_with_the_vectors(evergreen, finished, tmp_path, target):
    (tmp_path / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
    evergreen("embed", "sts@challenger", tmp_path / "texts.txt", tmp_path / target)
    tokenizer = {name: sha256(finished / "models/sts" / name) for name in ("tokenizer.json", "tokenizer_config.json")}
    vectors = {"vectors_sha256": sha256(tmp_path / target)} if target == "vectors.npy" else {}
    assert read(tmp_path / target)[1] == {
        "model": "sts@1", "weights_sha256": sha256(finished / "models/sts/model.safetensors"), "dimension": 32,
        "pooling": "mean", "normalized": False, "max_length": 128, "tokenizer_sha256": digest(tokenizer)} | vectors


def test_progress_is_shown_on_stderr_alone(finished, tmp_path):
    (tmp_path / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
    done = finished.evergreen("embed", "sts", str(tmp_path / "texts.txt"), str(tmp_path / "vectors.npy"))
    assert done.stdout == f"2 vectors of 32 dimensions in {tmp_path / 'vectors.npy'}, made by sts@1\n"
    assert "sts@1: 100%" in done.stderr and "2/2" in done.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (("empty.txt", "out.npy"), "empty.txt:2: the text is empty; remove the line"),
    (("empty.csv", "out.npy"), "empty.csv:3: the text is empty; remove the line"),
    (("none.txt", "out.npy"), "none.txt holds no text"),
    (("latin.txt", "out.npy"), "latin.txt:2: byte 0xe9 is not UTF-8"),
    (("good.csv", "out.npy", "--column", "body"), "good.csv: column 'body' is missing; the file has 'id', 'text'"),
    (("absent.txt", "out.npy"), "absent.txt does not exist"),
    (("good.csv", "out.json"), "out.json: the output must end in .parquet or .npy"),
    (("good.csv", "out.npy", "--batch-size", "0"), "--batch-size 0: must be at least 1"),
    (("good.parquet", "good.parquet"), "good.parquet: the output would replace the input; name another file")])
def test_bad_input_is_named_and_leaves_no_file(evergreen, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "empty.txt").write_text("one\n \nthree\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
    (tmp_path / "none.txt").touch()
    write_rows(tmp_path / "good.csv", [["id", "text"], ["1", "one"]])
    write_rows(tmp_path / "empty.csv", [["id", "text"], ["1", "one"], ["2", ""]])
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "good.parquet")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    done = evergreen("embed", "sts", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_unknown_model_leaves_no_file(evergreen, tmp_path):
    (tmp_path / "texts.txt").write_text("one\n", encoding="utf-8")
    done = evergreen("embed", "nothing", tmp_path / "texts.txt", tmp_path / "out.npy")
    assert (done.code, done.err.partition(";")[0]) == (2, "error: no model 'nothing' is registered")
    assert [p.name for p in tmp_path.iterdir()] == ["texts.txt"]


@pytest.mark.parametrize("target", ["vectors.parquet", "vectors.npy"])
def test_an_interruption_leaves_the_earlier_file_and_no_partial_one(evergreen, tmp_path, monkeypatch, target):
    (tmp_path / "texts.txt").write_text("text\n" * 40, encoding="utf-8")
    arguments = ("embed", "sts", tmp_path / "texts.txt", tmp_path / target, "--batch-size", 1)
    assert evergreen(*arguments).code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    encode = SentenceTransformer.encode

    def interrupted_in_the_second_chunk(self, texts, *args, **kwargs):
        if len(texts) == 8:
            raise KeyboardInterrupt
        return encode(self, texts, *args, **kwargs)
    monkeypatch.setattr(SentenceTransformer, "encode", interrupted_in_the_second_chunk)
    assert evergreen(*arguments).code == 130
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_byte_order_mark_is_no_part_of_the_first_text(evergreen, tmp_path):
    (tmp_path / "texts.txt").write_text("one\ntwo\n", encoding="utf-8-sig")
    evergreen("embed", "sts", tmp_path / "texts.txt", tmp_path / "vectors.parquet")
    assert pq.read_table(tmp_path / "vectors.parquet")["text"].to_pylist() == ["one", "two"]


@pytest.mark.parametrize("target", ["vectors.parquet", "vectors.npy"])
def test_vectors_are_appended_to_those_of_the_same_model(evergreen, finished, texts, tmp_path, target):
    (tmp_path / "all.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (tmp_path / "one.txt").write_text("\n".join(texts[:40]) + "\n", encoding="utf-8")
    (tmp_path / "two.txt").write_text("\n".join(texts[40:]) + "\n", encoding="utf-8")
    evergreen("embed", "sts", tmp_path / "all.txt", tmp_path / f"whole-{target}")
    for part in ("one.txt", "two.txt"):
        done = evergreen("embed", "sts", tmp_path / part, tmp_path / target, "--append")
    assert done.out == f"70 vectors of 32 dimensions in {tmp_path / target}, made by sts@1\n"
    (vectors, identity), (whole, _) = read(tmp_path / target), read(tmp_path / f"whole-{target}")
    assert np.allclose(vectors, whole, atol=1e-5) and identity["model"] == "sts@1"
    if target == "vectors.parquet":
        assert pq.read_table(tmp_path / target)["text"].to_pylist() == texts


@pytest.mark.parametrize("target", ["vectors.parquet", "vectors.npy"])
@pytest.mark.parametrize(("key", "value"), [
    ("weights_sha256", "0" * 64), ("pooling", "cls"), ("normalized", True), ("max_length", 64),
    ("tokenizer_sha256", "0" * 64)])
def test_vectors_of_another_model_are_never_mixed_in(evergreen, tmp_path, target, key, value):
    (tmp_path / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
    evergreen("embed", "sts", tmp_path / "texts.txt", tmp_path / target)
    identity = read(tmp_path / target)[1]
    identity |= {"model": "sts@7", key: value}
    if target == "vectors.npy":
        (tmp_path / "vectors.npy.json").write_text(json.dumps(identity), encoding="utf-8")
    else:
        table = pq.read_table(tmp_path / target)
        pq.write_table(table.replace_schema_metadata({"evergreen": json.dumps(identity)}), tmp_path / target)
    before = (tmp_path / target).read_bytes()
    done = evergreen("embed", "sts", tmp_path / "texts.txt", tmp_path / target, "--append")
    assert done.code == 2
    assert f"{target} holds vectors of sts@7, and sts@1 makes others ({key} {value}, not" in done.err
    assert (tmp_path / target).read_bytes() == before


@pytest.mark.parametrize("command", [["--append"], []])
def test_a_kill_between_the_identity_and_the_vectors_names_no_other_model(evergreen, tmp_path, monkeypatch, command):
    """What is left is an identity and vectors that do not belong together; nothing is added, and anew is whole."""
    for name, lines in (("old", "one\ntwo\n"), ("new", "three\n")):
        (tmp_path / f"{name}.txt").write_text(lines, encoding="utf-8")
    target = tmp_path / "vectors.npy"
    evergreen("embed", "sts", tmp_path / "old.txt", target)
    before = target.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr("steps.embed.os.replace", killed)
        assert evergreen("embed", "sts", tmp_path / "new.txt", target, *command).code == 130
    assert target.read_bytes() == before
    done = evergreen("embed", "sts", tmp_path / "new.txt", target, "--append")
    assert done.code == 2
    assert f"{target} has the sha256 {sha256(target)[:16]}…, and vectors.npy.json speaks of vectors of " in done.err
    assert done.err.endswith("a write was cut off between the two; embed the texts anew\n")
    assert target.read_bytes() == before
    assert evergreen("embed", "sts", tmp_path / "new.txt", target).code == 0
    assert evergreen("embed", "sts", tmp_path / "old.txt", target, "--append").out.startswith("3 vectors of 32 ")


@pytest.mark.parametrize("damage", ["no identity", "no digest", "no vectors", "another dimension"])
def test_a_file_that_does_not_say_who_made_it_is_not_appended_to(evergreen, tmp_path, damage):
    (tmp_path / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
    evergreen("embed", "sts", tmp_path / "texts.txt", tmp_path / "vectors.npy")
    if damage == "no identity":
        (tmp_path / "vectors.npy.json").unlink()
    elif damage == "no digest":
        identity = read(tmp_path / "vectors.npy")[1]
        del identity["vectors_sha256"]
        (tmp_path / "vectors.npy.json").write_text(json.dumps(identity), encoding="utf-8")
    elif damage == "no vectors":
        (tmp_path / "vectors.npy").write_bytes(b"")
    else:
        np.save(tmp_path / "vectors.npy", np.zeros((2, 31), np.float32))
        identity = read(tmp_path / "vectors.npy")[1] | {"vectors_sha256": sha256(tmp_path / "vectors.npy")}
        (tmp_path / "vectors.npy.json").write_text(json.dumps(identity), encoding="utf-8")
    done = evergreen("embed", "sts", tmp_path / "texts.txt", tmp_path / "vectors.npy", "--append")
    assert done.code == 2 and "embed the texts anew" in done.err
