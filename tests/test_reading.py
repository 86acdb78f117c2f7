"""Files of every format -> the text that stands in them, or an error that names file and line."""

import csv
import errno
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steps import reading
from steps.schema import InputError
from tests.project import write_rows

COLUMNS = ("sentence1", "sentence2", "score")
HEADER = "sentence1,sentence2,score\n"


def read(path: Path, columns=COLUMNS, header=None) -> list[tuple[int, dict]]:
    return list(reading.rows(path, columns, header))


def refusal(path: Path, columns=COLUMNS, header=None) -> str:
    """What a bad file is answered with, less the path it must begin with."""
    with pytest.raises(InputError) as caught:
        read(path, columns, header)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


# What is refused


@pytest.mark.parametrize("content, said", [
    ("sentence1,score\na,3\n", ": column 'sentence2' is missing; the file has 'sentence1', 'score'; "
                               "name the right one (columns in params.yaml, or --column)"),
    ("sentence1,sentence2,score,score\na,b,3,4\n", ": column 'score' stands twice in the header"),
    ("red,green,3\nup,down,4\n", ": column 'sentence1' is missing; the file has 'red', 'green', '3'"),
    ("sentence1;sentence2;score\na;b;3\n", ": column 'sentence1' is missing; the file has "
                                           "'sentence1;sentence2;score'"),
    ("", ": column 'sentence1' is missing; the file has none"),
])
def test_a_header_without_the_columns_is_refused_with_what_it_has(tmp_path, content, said):
    path = tmp_path / "train.csv"
    path.write_text(content, encoding="utf-8")
    assert refusal(path).startswith(said)


def test_a_parquet_file_without_the_columns_is_refused_with_what_it_has(tmp_path):
    pq.write_table(pa.table({"anchor": ["a"], "positive": ["b"]}), path := tmp_path / "train.parquet")
    assert refusal(path, ["anchor", "negative"]).startswith(
        ": column 'negative' is missing; the file has 'anchor', 'positive';")


def test_lines_of_plain_text_have_the_column_text_alone(tmp_path):
    (path := tmp_path / "train.txt").write_text("a line\n", encoding="utf-8")
    assert refusal(path, ["sentence"]).startswith(": column 'sentence' is missing; the file has 'text';")


@pytest.mark.parametrize("row, count", [("a,b,c,3", 4), ("a,3", 2)])
@pytest.mark.parametrize("before, line", [
    ("a,b,1\n", 3),
    ('"one\ntwo\nthree",b,1\n', 5),         # the row before stands on lines 2 to 4
    ("a,b,1\r\n\r\n", 4),                   # an empty line is no row, and still a line
])
def test_a_row_with_other_fields_than_the_header_is_named_by_its_line(tmp_path, row, count, before, line):
    (path := tmp_path / "train.csv").write_bytes(f"{HEADER}{before}{row}\na,b,2\n".encode())
    assert refusal(path) == (f":{line}: {count} fields where the header has 3; "
                             "quote a text that holds the separator")


@pytest.mark.parametrize("rows", ['a,b,1\nc,"d,3\n' + "e,f,3\n" * count for count in (1, 30_000)])
def test_a_quote_that_is_never_closed_is_named_by_its_line(tmp_path, rows):
    path = tmp_path / "train.csv"
    path.write_text(HEADER + rows, encoding="utf-8")
    assert refusal(path).startswith(":3: ") and "every quote is closed" in refusal(path)


@pytest.mark.parametrize("between", [",", ", "])
def test_a_quote_that_joins_rows_is_named_also_where_a_blank_follows_what_separates(tmp_path, between):
    rows = [["a", "b", "1"], ['"c of 1,000', "d", "2"], ['e of 15"', "f", "3"]]
    path = tmp_path / "train.csv"
    path.write_text(HEADER + "".join(f"{between.join(row)}\n" for row in rows), encoding="utf-8")
    assert refusal(path).startswith(":3: a quote joins lines 3 to 4 to one row")


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_byte_that_is_not_utf8_is_named_by_its_line(tmp_path, start):
    path = tmp_path / "train.csv"
    path.write_bytes(start + HEADER.encode() + b"a,b,1\ncaf\xe9,b,1\n")
    assert refusal(path) == ":3: byte 0xe9 is not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize("name, said", [("train.csv.gz", " is not a whole gzip file"),
                                        ("train.jsonl.gz", " is not a whole gzip file"),
                                        ("train.parquet", " is not a Parquet file")])
def test_a_file_of_another_format_than_its_name_says_is_refused(tmp_path, name, said):
    path = tmp_path / name
    path.write_text(HEADER + "a,b,1\n", encoding="utf-8")
    assert refusal(path).startswith(said)


def test_a_gzip_file_cut_short_is_refused(tmp_path):
    whole = gzip.compress((HEADER + "a,b,1\n" * 1000).encode())
    (path := tmp_path / "train.csv.gz").write_bytes(whole[:len(whole) - 20])
    assert refusal(path).startswith(" is not a whole gzip file")


@pytest.mark.parametrize("line, said", [
    ('{"text": "b"', ": not a JSON object: Expecting ',' delimiter"),
    ("plain text", ": not a JSON object: Expecting value"),
    ('["b"]', ": a line must hold one JSON object, not list"),
    ('"b"', ": a line must hold one JSON object, not str"),
    ('{"text": ["a", "b"]}', ": 'text' is ['a', 'b'], and a column holds texts or numbers"),
    ('{"text": {"body": "b"}}', ": 'text' is {'body': 'b'}, and a column holds texts or numbers"),
    ('{"body": "b", "id": 1}', ": column 'text' is missing; the file has 'body', 'id'; name the right one"),
])
def test_a_bad_json_line_is_named_by_its_line(tmp_path, line, said):
    (path := tmp_path / "train.jsonl").write_text(f'{{"text": "a"}}\n\n{line}\n', encoding="utf-8")
    assert refusal(path, ["text"]).startswith(f":3{said}")


# What is read


def test_texts_stay_the_texts_they_are(tmp_path):
    texts = ["null", "NA", "007", "1e3", "True", " padded ", 'say "hi", twice', "two\nlines", "naïve 🙂"]
    write_rows(path := tmp_path / "train.csv", [["sentence1", "score"], *([t, "5"] for t in texts)])
    assert [row["sentence1"] for _, row in read(path, ["sentence1"])] == texts


def test_every_format_reads_alike(tmp_path):
    rows = [["sentence1", "sentence2", "score"], ["a", "b", "1"], ["null", 'a, "b"\nc', "2.5"], ["naïve", "🙂", "0"]]
    write_rows(tmp_path / "train.csv", rows)
    content = (tmp_path / "train.csv").read_bytes()
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(content))
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + content)
    with open(tmp_path / "train.tsv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    found = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    lines = "".join(json.dumps(row) + "\n" for row in found).encode()
    for name in ("train.jsonl", "train.json"):
        (tmp_path / name).write_bytes(lines)
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.Table.from_pylist(found), tmp_path / "train.parquet")
    for path in tmp_path.iterdir():
        assert [row for _, row in read(path)] == found, path.name
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("values, texts", [([0.0, 2.5], ["0.0", "2.5"]), ([0, 3], ["0", "3"]),
                                           ([None, "x"], ["", "x"])])
def test_numbers_and_nothing_become_text(tmp_path, values, texts):
    pq.write_table(pa.table({"score": values}), parquet := tmp_path / "train.parquet")
    (lines := tmp_path / "train.jsonl").write_text("".join(json.dumps({"score": v}) + "\n" for v in values))
    for path in (parquet, lines):
        assert [row["score"] for _, row in read(path, ["score"])] == texts


def test_vectors_in_a_parquet_file_stay_numbers(tmp_path):
    pq.write_table(pa.table({"vector": [[0.5, 1.0], [2.0, 4.0]]}), path := tmp_path / "train.parquet")
    assert [row["vector"] for _, row in reading.rows(path, ["vector"], vectors=["vector"])] == [[0.5, 1.0], [2.0, 4.0]]


@pytest.mark.parametrize("value", [["a", "b"], [0.5], {"a": 1}])
def test_a_list_or_a_struct_in_a_parquet_file_is_no_text(tmp_path, value):
    pq.write_table(pa.table({"text": pa.array([value])}), path := tmp_path / "train.parquet")
    assert refusal(path, ["text"]) == (f", row 1: 'text' is {value!r}, and a column holds texts or numbers; write it "
                                       "as one, or name another column")


def test_rows_have_the_line_they_begin_on(tmp_path):
    (path := tmp_path / "train.csv").write_text(HEADER + 'a,b,1\n\n"c\nc",d,2\ne,f,3\n', encoding="utf-8")
    assert [line for line, _ in read(path)] == [2, 4, 6]


def test_a_parquet_file_of_several_batches_is_read_in_order(tmp_path):
    count = 2 * reading.BATCH + 1
    pq.write_table(pa.table({"n": list(range(count))}), path := tmp_path / "train.parquet")
    assert read(path, ["n"]) == [(n + 1, {"n": str(n)}) for n in range(count)]


def test_a_header_is_given_to_a_file_that_has_none(tmp_path):
    """The four columns of CoLA: where from, the label, the author's own mark, the sentence."""
    (path := tmp_path / "train.tsv").write_text(
        "gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t*\tThey made him to leave.\n", encoding="utf-8")
    header = ["source", "label", "mark", "sentence"]
    assert [(line, row["sentence"], row["label"], row["source"])
            for line, row in read(path, ["sentence", "label", "source"], header)] == [
        (1, "Our friends won't buy this.", "1", "gj04"), (2, "They made him to leave.", "0", "gj04")]


def test_a_header_that_does_not_fit_is_refused_at_the_first_line(tmp_path):
    (path := tmp_path / "train.tsv").write_text("gj04\t1\t\tOur friends won't buy this.\n", encoding="utf-8")
    assert refusal(path, ["sentence"], ["source", "label", "sentence"]).startswith(
        ":1: 4 fields where the header has 3")


def test_the_lines_of_plain_text_are_rows(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfone, \"two\"\r\n\r\nthree\n")
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress((tmp_path / "train.txt").read_bytes()))
    for path in tmp_path.iterdir():
        assert read(path, ["text"]) == [(1, {"text": 'one, "two"'}), (2, {"text": ""}), (3, {"text": "three"})]


def test_the_files_of_a_split_are_read_in_the_order_they_were_given(tmp_path):
    for name in ("source.json", "dev.csv", *(f"train.{n}.jsonl.gz" for n in range(1, 13))):
        (tmp_path / name).touch()
    found = reading.splits(tmp_path)
    assert {split: [path.name for path in files] for split, files in found.items()} == {
        "dev": ["dev.csv"], "train": [f"train.{n}.jsonl.gz" for n in range(1, 13)]}


def test_a_data_set_without_files_is_refused(tmp_path):
    (tmp_path / "source.json").touch()
    with pytest.raises(InputError, match="has no files; declare them under splits"):
        reading.splits(tmp_path)


def test_a_parquet_file_that_is_damaged_inside_is_named(tmp_path):
    pq.write_table(pa.table({"text": [f"text number {n}" for n in range(500)]}), tmp_path / "train.parquet",
                   use_dictionary=False)
    content = bytearray((tmp_path / "train.parquet").read_bytes())
    content[100:400] = bytes(300)
    (tmp_path / "train.parquet").write_bytes(content)
    assert refusal(tmp_path / "train.parquet", ["text"]).startswith(": damaged behind row 0: ")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(6)])
def test_bytes_in_a_parquet_file_are_utf8(tmp_path, kind):
    table = pa.table({"text": pa.array(["naïve".encode(), None, b"caf\xe9!!"], kind)})
    pq.write_table(table, path := tmp_path / "train.parquet")
    rows = reading.rows(path, ["text"])
    assert [next(rows), next(rows)] == [(1, {"text": "naïve"}), (2, {"text": ""})]
    assert refusal(path, ["text"]) == ", row 3: byte 0xe9 of 'text' is not UTF-8; save the texts as UTF-8"


def spoil_footer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    content[-8 - length:-8] = b"\xff" * length
    path.write_bytes(content)


def test_a_parquet_file_whose_end_is_damaged_is_named(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), path := tmp_path / "train.parquet")
    spoil_footer(path)
    assert refusal(path, ["text"]).startswith(" is not a Parquet file: Couldn't deserialize thrift")
    assert refusal(path, ["text"]).endswith("; bring the file again")


def test_a_parquet_file_whose_column_names_are_no_text_is_named(tmp_path):
    pq.write_table(pa.table({"text_of_a_row": ["a"]}), path := tmp_path / "train.parquet", store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"text_of_a_row", b"text_of_a_\xffow"))
    assert refusal(path, ["text"]).startswith(" is not a Parquet file: 'utf-8' codec can't decode byte 0xff")


@pytest.mark.parametrize("values, said", [
    (pa.array([b"good"] * 1500 + [b"\xff"], pa.binary()).view(pa.string()),
     ": rows 1001 to 1501 hold what is no text or number: 'utf-8' codec can't decode byte 0xff"),
    (pa.array([2**62], pa.timestamp("us")), ": rows 1 to 1 hold what is no text or number: "),
    (pa.array([0], pa.timestamp("s", "Mars/Base")), ": rows 1 to 1 hold what is no text or number: ")],
    ids=["a byte", "a time too far", "an unknown time zone"])
def test_values_that_a_parquet_file_cannot_mean_are_named_by_their_rows(tmp_path, values, said):
    pq.write_table(pa.table({"text": values}), path := tmp_path / "train.parquet")
    assert refusal(path, ["text"]).startswith(said)
    assert refusal(path, ["text"]).endswith("; write the file anew, with texts as UTF-8")


def test_a_parquet_file_that_is_not_there_or_cannot_be_read_is_no_damaged_one(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "train.parquet", ["text"])
    pq.write_table(pa.table({"text": ["a"]}), path := tmp_path / "train.parquet")

    def broken(*arguments, **settings):
        raise OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *arguments, **settings: map(broken, [0]))
    with pytest.raises(OSError, match="Input/output error"):
        read(path, ["text"])


@pytest.mark.parametrize("value", ["[" * 100_000, '"a", "text": "b"'], ids=["brackets too deep", "a key twice"])
def test_json_that_the_parser_cannot_take_is_named_by_its_line(tmp_path, value):
    (tmp_path / "train.jsonl").write_text('{"text": "good"}\n{"text": ' + value + "}\n", encoding="utf-8")
    assert refusal(tmp_path / "train.jsonl", ["text"]).startswith(":2: not a JSON object: ")


@pytest.mark.parametrize("value", ["1e5", "1.10", "9" * 5000, "NaN"])
def test_numbers_in_json_stay_as_they_are_written(tmp_path, value):
    (tmp_path / "train.jsonl").write_text('{"text": ' + value + "}\n", encoding="utf-8")
    assert read(tmp_path / "train.jsonl", ["text"]) == [(1, {"text": value})]
