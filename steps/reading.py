"""A file of rows -> (line, {column: text}), every value as the text that stands there ("NA" is text)."""

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from steps.schema import Columns, InputError

TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")
BATCH = 1000        # rows of a Parquet file held at once
NUMBER = re.compile(r"[+-]?(\d+(\.\d+)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
FIELD = 10_000_000  # characters of a field; where one seems longer, a quote was not closed


def splits(dataset: Path) -> dict[str, list[Path]]:
    """{split: its files, in their order} of a data set's folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(sorted(dataset.glob("*")), key=lambda p: [int(x) if x.isdigit() else 0
                                                                 for x in p.name.split(".")]):
        if path.name != "source.json":
            found.setdefault(path.name.split(".")[0], []).append(path)
    if not found:
        raise InputError(f"{dataset} has no files; declare them under splits in params.yaml")
    return found


def rows(path: Path, columns: Sequence[str], header: Sequence[str] | None = None,
         vectors: Sequence[str] = ()) -> Iterator[tuple[int, Mapping]]:
    """The named columns of a CSV, TSV, JSON-lines or Parquet file, or the lines of any other as column `text`.

    `header` names the columns of a CSV or TSV file that has no header of its own. `vectors` in a Parquet file stay
    lists of numbers; all else is text. Only as much is held as one row needs. Raises InputError naming file, line and
    what is wrong.
    """
    suffixes = [s for s in path.suffixes if s in (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".gz")]
    match suffixes:
        case [".parquet", *_]:
            yield from _parquet(path, columns, vectors)
        case [".json" | ".jsonl", *_]:
            yield from _json_lines(path, columns)
        case [".csv" | ".tsv" as kind, *_]:
            yield from _separated(path, columns, header, "\t" if kind == ".tsv" else ",")
        case _:
            _check_columns(path, ["text"], columns)
            for number, line in enumerate(_lines(path), start=1):
                yield number, {"text": line.rstrip("\r\n")}


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, which may be compressed; line ends stay."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as lines:
            for number, raw in enumerate(lines, start=1):
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{number}: byte {error.object[error.start]:#04x} is not UTF-8; "
                         "save the file as UTF-8") from None


def _separated(path: Path, columns, header, delimiter: str) -> Iterator[tuple[int, Mapping]]:
    # csv ends a row at a lone carriage return too; io.StringIO splits lines as it wants them
    csv.field_size_limit(FIELD)
    raw: list[str] = []
    reader = csv.reader((raw.append(part) or part for line in _lines(path) for part in io.StringIO(line, newline="")),
                        delimiter=delimiter, strict=True)
    line = 0
    try:
        names = list(header) if header else next(reader, [])
        _check_columns(path, names, columns)
        line = reader.line_num
        raw.clear()
        before = names
        for fields in reader:
            line, start, lines = reader.line_num, line + 1, raw.copy()
            raw.clear()
            if not fields:
                continue
            if len(lines) > 1 and len(names) > 1 and all(
                    _separators(each, delimiter, before) >= len(names) - 1 for each in lines):
                raise InputError(f"{path}:{start}: a quote joins lines {start} to {line} to one row, and each of them "
                                 "looks like a row; a text with quotes in it is quoted, its quotes doubled")
            if len(fields) != len(names):
                raise InputError(f"{path}:{start}: {len(fields)} fields where the header has {len(names)}; "
                                 "quote a text that holds the separator")
            if len(lines) == 1:
                before = fields
            yield start, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{line + 1}: {error}; a text with quotes in it is quoted, its quotes doubled, "
                         "and every quote is closed") from None


def _separators(line: str, delimiter: str, before: list[str]) -> int:
    """How many of the delimiters in a line separate fields: in prose a blank follows, if not in the row before too."""
    spaced = all(field.startswith(" ") for field in before[1:])
    return len(re.findall(delimiter if spaced else f"{delimiter}(?! )", line))


def _json_lines(path: Path, columns) -> Iterator[tuple[int, Mapping]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:       # also a number of thousands of digits
            raise InputError(f"{path}:{number}: not a JSON object: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: a line must hold one JSON object, not {type(row).__name__}")
        _check_columns(f"{path}:{number}", list(row), columns)
        yield number, {c: _text(f"{path}:{number}", c, row[c]) for c in columns}


def _once(pairs: list[tuple]) -> dict:
    """A JSON object. Raises ValueError where a key stands in it twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def _parquet(path: Path, columns, vectors) -> Iterator[tuple[int, Mapping]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise _damaged(error, f"{path} is not a Parquet file") from None
    with file:
        _check_columns(path, names, columns)
        number = 0
        batches = file.iter_batches(BATCH, columns=list(dict.fromkeys(columns)))
        while (found := _batch(path, batches, number)) is not None:
            for row in found:
                number += 1
                yield number, {k: v if isinstance(v, list) and k in vectors else _text(f"{path}, row {number}", k, v)
                               for k, v in row.items()}


def _batch(path: Path, batches, number: int) -> list[dict] | None:
    """The rows of the next batch, which stands behind row `number`; None at the end."""
    import pyarrow as pa

    try:
        batch = next(batches, None)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(error, f"{path}: damaged behind row {number}") from None
    try:
        return None if batch is None else batch.to_pylist()
    except (ValueError, OverflowError, LookupError, pa.ArrowException) as error:    # no UTF-8; a time, a zone of none
        raise InputError(f"{path}: rows {number + 1} to {number + len(batch)} hold what is no text or number: {error}; "
                         "write the file anew, with texts as UTF-8") from None


def _damaged(error: Exception, said: str) -> Exception:
    """What a damaged file is answered with; the error itself where it is the system's, such as a missing file."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return InputError(f"{said}: {' '.join(str(error).split())}; bring the file again")


def _text(place: str, column: str, value) -> str:
    if isinstance(value, (list, dict)):
        raise InputError(f"{place}: {column!r} is {value!r:.60}, and a column holds texts or numbers; write it as one, "
                         "or name another column")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: byte {value[error.start]:#04x} of {column!r} is not UTF-8; save the texts as "
                             "UTF-8") from None
    return "" if value is None else str(value)


def _check_columns(path, header: Sequence[str], columns: Sequence[str]) -> None:
    if repeated := [c for c in columns if header.count(c) > 1]:
        raise InputError(f"{path}: column {repeated[0]!r} stands twice in the header")
    if missing := [c for c in columns if c not in header]:
        present = ", ".join(map(repr, header)) or "none"
        raise InputError(f"{path}: column {missing[0]!r} is missing; the file has {present}; "
                         "name the right one (columns in params.yaml, or --column)")


def texts(row: Mapping[str, str], columns: Columns, names: Sequence[str]) -> dict[str, str]:
    """The row's texts under the recipe's names, and its source."""
    found = {name: row[getattr(columns, name)] for name in names}
    return found if columns.source is None else {**found, "source": row[columns.source]}


def label(text: str, labels: Sequence[str]) -> int | None:
    """The place of a label among `labels`, given by name or, where no name is a number itself, by place; else None."""
    places = [] if any(name.isdecimal() for name in labels) else [str(place) for place in range(len(labels))]
    for known in (list(labels), places):
        if text.strip() in known:
            return known.index(text.strip())
    return None


def number(text: str) -> float:
    """The number that a text writes out; nan where it writes none: "1,5", "4.", "inf" and "" are none."""
    return float(text) if NUMBER.fullmatch(text.strip()) else math.nan
