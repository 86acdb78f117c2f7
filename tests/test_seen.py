"""The keys of training rows: equal for equal rows however they are written, and handed on from parent to child."""

import numpy as np
import pyarrow as pa
import pytest

from steps import seen


def known(row: list[str], trained: list[list[str]]) -> bool:
    keys = np.unique(np.concatenate([seen.keys([[text] for text in texts]).ravel() for texts in trained]))
    return bool(seen.rows([[text] for text in row], keys)[0])


@pytest.mark.parametrize("row, trained, expected", [
    (["A dog.", "A cat."], [["A dog.", "A cat."]], True),
    (["A cat.", "A dog."], [["A dog.", "A cat."]], True),               # the other way round
    (["a  DOG. ", "\uff21 cat."], [["A dog.", "A cat."]], True),             # case, space, width
    (["A dog.", "A cat!"], [["A dog.", "A cat."]], False),
    (["A dog.", "A cow."], [["A dog.", "A cat."], ["A cow.", "A cat."]], False),    # its texts, not the row
    (["A dog."], [["A dog."]], True),
    (["A dog."], [["A dog.", "A cat."]], False),
    (["A dog.", "A pup.", "A cow."], [["A pup.", "A dog."]], True),     # a triplet by its pair
    (["A dog.", "A cow.", "A pup."], [["A dog.", "A pup.", "A car."]], True),
    (["ab", "c"], [["a", "bc"]], False)])
def test_a_row_is_known_by_its_pair(row, trained, expected):
    assert known(row, trained) is expected


def write(path, **columns) -> None:
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def test_a_model_carries_its_rows_and_those_of_its_base_model(tmp_path):
    write(tmp_path / "train.arrow", a=["x", "y", "z"], b=["1", "2", "3"])
    write(tmp_path / "dev.arrow", a=["v"], b=["4"])
    np.save(tmp_path / seen.FILE, np.array([7], np.uint64))
    splits = [(tmp_path / name, ("a", "b")) for name in ("train.arrow", "dev.arrow")]
    found = seen.of_training(splits, tmp_path)
    assert found.dtype == np.uint64 and len(found) == 5 and 7 in found
    assert seen.rows([["3", "v", "x"], ["z", "4", "2"]], found).tolist() == [True, True, False]
    assert len(seen.of_training(splits, tmp_path / "elsewhere")) == 4


def test_the_content_of_a_split_is_the_same_under_another_tokenizer(tmp_path):
    write(tmp_path / "one", text=["x"], label=[1], text_input_ids=[[1, 2]])
    write(tmp_path / "two", text=["x"], label=[1], text_input_ids=[[3]])
    write(tmp_path / "three", text=["x"], label=[0], text_input_ids=[[1, 2]])
    one, two, three = (seen.content_sha256(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three
