"""Folders and files here: a copy of what was named, each file called by its split, or a plain refusal."""

import json
from pathlib import Path

import pytest

from tests.hub_server import Place

MODEL = {"model.safetensors": b"weights", "config.json": b'{"hidden_size": 32}\n', "1_Pooling/config.json": b"{}\n"}


@pytest.fixture
def place(tmp_path, environment) -> Place:
    return Place(tmp_path / "place", environment, hub="http://127.0.0.1:9")


@pytest.fixture
def local(place) -> Path:
    """A folder with a model's files, declared."""
    place.declare("base_models", "local", {"path": "mine", "licence": "none"})
    (place.folder / "mine/1_Pooling").mkdir(parents=True)
    for file, content in MODEL.items():
        (place.folder / "mine" / file).write_bytes(content)
    return place.folder / "mine"


def test_a_local_folder_is_copied_with_a_source_of_its_own(place, local):
    (local / "source.json").write_text('{"name": "where it was copied from"}', encoding="utf-8")
    (local / "linked.txt").symlink_to(local / "config.json")
    assert place.gets() == MODEL | {"linked.txt": MODEL["config.json"]}
    source = json.loads((place.out / "source.json").read_text())
    assert source["name"] == "it"
    assert sorted(source["sha256"]) == ["1_Pooling/config.json", "config.json", "linked.txt", "model.safetensors"]


def test_a_link_to_a_folder_is_refused_since_its_changes_would_go_unseen(place, local):
    (local / "2_Dense").symlink_to(local / "1_Pooling")
    assert "mine/2_Dense links to a folder or to nothing" in place.refuses()


def test_a_link_out_of_a_models_folder_is_refused(place, local):
    (place.folder / "secret").write_text("secret", encoding="utf-8")
    (local / "vocab.txt").symlink_to("../secret")
    said = place.refuses()
    assert "mine/vocab.txt links to " in said and "/secret, outside mine; put the file itself there" in said


def test_a_snapshot_in_the_hubs_cache_may_link_to_its_blobs(place):
    snapshot = place.folder / "models--a--b/snapshots/1110a24"
    snapshot.mkdir(parents=True)
    (place.folder / "models--a--b/blobs").mkdir()
    (place.folder / "models--a--b/blobs/77").write_text("weights", encoding="utf-8")
    (snapshot / "model.safetensors").symlink_to("../../blobs/77")
    place.declare("base_models", "local", {"path": "models--a--b/snapshots/1110a24", "licence": "none"})
    assert place.gets() == {"model.safetensors": b"weights"}


@pytest.mark.parametrize("target, taken", [("real.csv", True), ("../secret.csv", False)])
def test_a_file_alone_that_is_a_link_is_taken_from_its_own_folder_only(place, target, taken):
    folder = place.folder / "mine"
    folder.mkdir()
    (folder / target).write_text("text\n", encoding="utf-8")
    (folder / "all.csv").symlink_to(target)
    place.declare("datasets", "local", {"path": "mine/all.csv", "licence": "none", "splits": {"train": "all.csv"}})
    if taken:
        assert place.gets("dataset") == {"train.csv": b"text\n"}
    else:
        assert "secret.csv, outside mine; put the file itself there" in place.refuses("dataset")


def test_a_local_file_alone_can_be_a_data_set(place):
    (place.folder / "all.csv").write_text("sentence1,sentence2,score\n", encoding="utf-8")
    place.declare("datasets", "local", {"path": "all.csv", "licence": "none", "splits": {"train": "all.csv"}})
    assert place.gets("dataset") == {"train.csv": b"sentence1,sentence2,score\n"}


@pytest.mark.parametrize("entry, said", [
    ({"path": "absent"}, "it: absent does not exist; correct its path in params.yaml"),
    ({"path": "."}, "it: absent.csv does not exist; correct splits in params.yaml"),
    ({"path": "params.yaml"}, "splits.dev = 'absent.csv': the source has no such file; it has params.yaml"),
    ({"path": ".", "splits": {"dev": "absent.xls"}}, "splits.dev = 'absent.xls': the format must be one of .csv, "),
])
def test_a_path_split_or_format_that_cannot_be_is_named(place, entry, said):
    place.declare("datasets", "local", {"licence": "none", "splits": {"dev": "absent.csv"}} | entry)
    assert said in place.refuses("dataset")


def declare_splits(place: Place, **splits) -> None:
    """A data set in the folder `mine`, each of whose files holds its own name."""
    for files in splits.values():
        for file in [files] if isinstance(files, str) else files:
            (path := place.folder / "mine" / file).parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file, encoding="utf-8")
    place.declare("datasets", "local", {"path": "mine", "licence": "none", "splits": splits})


def test_several_files_of_a_split_keep_their_order_and_number(place):
    declare_splits(place, train=["b.csv", "a.csv.gz", "more/a.csv"], dev=["c.tsv"], test="d.parquet")
    assert place.gets("dataset") == {"train.1.csv": b"b.csv", "train.2.csv.gz": b"a.csv.gz",
                                     "train.3.csv": b"more/a.csv", "dev.tsv": b"c.tsv", "test.parquet": b"d.parquet"}


def test_plain_text_json_lines_and_splits_of_any_name_are_taken(place):
    declare_splits(place, train=["talks.en.txt", "talks.de.txt"], dev="x.jsonl", test="x.jsonl.gz", sts_de="x.txt.gz")
    assert place.gets("dataset") == {
        "train.1.txt": b"talks.en.txt", "train.2.txt": b"talks.de.txt", "dev.jsonl": b"x.jsonl",
        "test.jsonl.gz": b"x.jsonl.gz", "sts_de.txt.gz": b"x.txt.gz"}


def test_a_file_of_a_list_that_is_not_there_is_named(place):
    declare_splits(place, train=["a.csv", "b.csv"])
    (place.folder / "mine/b.csv").unlink()
    assert "it: mine/b.csv does not exist; correct splits in params.yaml" in place.refuses("dataset")


def test_a_split_of_no_files_is_refused(place):
    declare_splits(place, train=[])
    assert "datasets.local.it.splits.train" in place.refuses("dataset")
