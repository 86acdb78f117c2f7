"""Rows of text and what a recipe says they must be -> the rows that are so; the others, each with line and rule.

The rules of a row are a pandera schema (https://pandera.readthedocs.io) made of what the recipe declares: its text
columns, score_range and labels, and the numbers of its `contract`. A row that breaks one is quarantined.
"""

import csv
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from steps import reading
from steps.schema import Columns, Contract, InputError

LISTS = ("quarantine.csv", "overlaps.csv")     # what was left out and why
SHOWN = 10                  # bad rows named before the rest is only counted
READABLE = 80               # characters of a value that are shown
CHUNK = 1_000               # rows checked together,
CHARACTERS = 4_000_000      # or fewer, where they are long
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")
HALF = "has half a surrogate pair, which is no character; write the whole character"


class Findings:
    """What was found in a recipe's data. `stops` are the reasons not to train on it, `notes` what to look at."""

    def __init__(self, contract: Contract, folder: Path):
        self.contract, self.folder = contract, folder
        self.read: Counter[str] = Counter()                 # rows read, by split
        self.quarantined: dict[str, Counter[str]] = {}      # bad rows, by split and rule
        self.problems: dict[str, list[str]] = {}            # the first of them in words
        self.stops: list[str] = []
        self.notes: list[str] = []
        self.written: dict[str, dict[str, int]] = {}        # what was tokenized, by split
        self.overlaps: dict[str, dict] = {}
        self.repeats: dict[str, dict] = {}

    def quarantine(self, split: str, path: Path, line: int, column: str, value: str, rule: str) -> None:
        """Lists a bad row in quarantine.csv."""
        self.quarantined.setdefault(split, Counter())[f"{column} {rule}"] += 1
        problems = self.problems.setdefault(split, [])
        if len(problems) < SHOWN:
            problems.append(f"{path}:{line}: {column} = {shown(value)!r} {rule}")
        self.list("quarantine.csv", ("split", "file", "line", "column", "rule", "value"),
                  (split, path, line, column, rule, shown(value)))

    def list(self, name: str, header: Sequence[str], row: Sequence) -> None:
        """A further line of a file of the folder."""
        new = not (path := self.folder / name).exists()
        with open(path, "a", encoding="utf-8", newline="", errors="backslashreplace") as file:
            csv.writer(file, lineterminator="\n").writerows([header, row] if new else [row])

    def keep_lists(self, place: Path) -> str:
        """Moves the lists of what was left out to another folder, and says where they then are."""
        place.mkdir(parents=True, exist_ok=True)
        return ", ".join(str(shutil.move(self.folder / name, place / name))
                         for name in LISTS if (self.folder / name).exists())

    def overlap(self, split: str, kind: str, similarity: float, ours: str, theirs: str) -> None:
        """Lists an example of train that an evaluation split has too, or nearly, in overlaps.csv."""
        self.list("overlaps.csv", ("split", "kind", "similarity", "train", "evaluation"),
                  (split, kind, f"{similarity:.3f}", ours, theirs))

    def settle(self, split: str) -> None:
        """Stops the run where more than the allowed share of a split's rows are bad."""
        bad = sum(self.quarantined.get(split, {}).values())
        if bad > self.contract.bad_rows * self.read[split]:
            more = [f"and {bad - SHOWN} more rows"] if bad > SHOWN else []
            self.stops += [*self.problems[split], *more,
                           f"{split}: {bad} of {self.read[split]} rows are bad, more than the allowed "
                           f"{self.contract.bad_rows:.1%} (contract.bad_rows); correct them or allow more"]

    def distribution(self, split: str, values: Sequence, labels: Sequence[str]) -> None:
        """Stops the run where a split's labels or scores leave nothing to learn or to measure."""
        if labels:
            absent = [name for place, name in enumerate(labels) if place not in set(values)]
            if split == "train" and absent:
                self.stops.append(f"train has no row of {', '.join(absent)}: give some, or take the name out of labels")
            elif len(absent) >= len(labels) - 1:
                self.stops.append(f"every row of {split} has the same label: a metric of one class says nothing")
            elif absent:
                self.notes.append(f"{split} has no row of {', '.join(absent)}")
        elif values and isinstance(values[0], float) and min(values) == max(values):
            self.stops.append(f"every score of {split} is the same: a metric of constant gold scores is not a number")

    def tokenized(self, split: str, counts: dict[str, int], example: str | None, base_model: str) -> None:
        """Stops the run where too many tokens are unknown to the base model, or too many texts are cut."""
        self.written[split] = counts
        if counts["unknown"] > self.contract.unknown * counts["tokens"]:
            self.stops.append(f"{split}: {counts['unknown'] / counts['tokens']:.1%} of the tokens are unknown to "
                              f"{base_model}, as in {shown(example)!r}; more than the allowed "
                              f"{self.contract.unknown:.1%} (contract.unknown): choose a base_model of this language")
        elif counts["unreadable"] > self.contract.unknown * counts["texts"]:
            self.stops.append(f"{split}: in {counts['unreadable']} of {counts['texts']} texts every token is unknown "
                              f"to {base_model}, as in {shown(example)!r}; more than the allowed "
                              f"{self.contract.unknown:.1%} (contract.unknown): remove them, or choose a base_model of "
                              "their language")
        elif counts["unreadable"]:
            self.notes.append(f"in {counts['unreadable']} texts of {split} every token is unknown to {base_model}, "
                              f"such as {shown(example)!r}")
        if counts["truncated"] > self.contract.truncated * counts["texts"]:
            self.stops.append(f"{split}: {counts['truncated'] / counts['texts']:.1%} of the texts are cut, more than "
                              f"the allowed {self.contract.truncated:.1%} (contract.truncated): raise "
                              "prepare.max_length, or allow more")

    def refuse(self) -> None:
        """Raises InputError with every reason not to train on the data."""
        if self.stops:
            raise InputError("\n".join(self.stops))

    def said(self) -> Iterator[str]:
        """What was left out, and what is kept that contradicts itself, a line each."""
        for split, rules in self.quarantined.items():
            yield f"{split}: {sum(rules.values())} rows left out that break a rule"
        for pair, counts in self.overlaps.items():
            one, other = pair.split("/", 1)
            if counts.get("dropped"):
                yield f"{one}: {counts['dropped']} rows left out that stand in {other} too"
            if counts.get("near_dropped") and counts["near"]:
                yield f"{one}: {counts['near']} rows left out that are nearly alike with {other}"
        for split, counts in self.repeats.items():
            if counts["conflicting"]:
                yield f"{split}: {counts['conflicting']} examples that stand there with different labels"

    def report(self) -> dict:
        """The counts as plain values."""
        splits = {split: {"read": self.read[split], "quarantined": dict(self.quarantined.get(split, {})),
                          **self.written.get(split, {})} for split in {**self.read, **self.written}}
        return {"splits": splits, "overlaps": self.overlaps, "repeats": self.repeats, "notes": self.notes}


def unlicensed(path: str, licence: str | None, contract: Contract) -> list[str]:
    """What is wrong with the licence of a data set or base model, if anything."""
    allowed = contract.licences
    if allowed is None or (licence or "").casefold() in [name.casefold() for name in allowed]:
        return []
    return [f"the licence {licence!r} of {path} is not one of contract.licences: {', '.join(allowed) or 'none'}; use "
            "another, or allow it"]


def shown(value) -> str:
    """The value, cut to a readable length."""
    text = str(value)
    return text if len(text) <= READABLE else f"{text[:READABLE]}... ({len(text)} characters)"


def rows(files: Sequence[Path], split: str, columns: Columns, header: list[str] | None, rules,
         found: Findings) -> Iterator[Mapping]:
    """The good rows of a split's files, as text; the bad ones go to quarantine.

    Rows are read ahead and checked together, but a row or a fault of the file that nobody asks for has no effect.
    Raises InputError where a file cannot be read on, naming its line.
    """
    for path in files:
        lines, error = reading.rows(path, columns.wanted(), header, columns.vectors()), None
        while error is None:
            chunk, error = _chunk(lines)
            if not chunk:
                break
            problems = check([row for _, row in chunk], rules)
            for place, (line, row) in enumerate(chunk):
                found.read[split] += 1
                if place in problems:
                    column, rule = problems[place]
                    found.quarantine(split, path, line, column, row[column], rule)
                else:
                    yield row
        if error:
            raise error
    if not found.read[split]:
        raise InputError(f"{files[0]} has no rows" + ("" if header else " below its header"))


def _chunk(lines: Iterator[tuple[int, Mapping]]) -> tuple[list[tuple[int, Mapping]], InputError | None]:
    """The next rows, and what stopped the reading, if anything did."""
    chunk, size = [], 0
    try:
        for line, row in islice(lines, CHUNK):
            chunk.append((line, row))
            size += sum(len(value) for value in row.values())
            if size > CHARACTERS:
                break
    except InputError as error:
        return chunk, error
    return chunk, None


def rules(columns: Columns, texts: Sequence[str], entry, labels: Sequence[str], contract: Contract,
          documents: bool = False):
    """The pandera schema of a file's columns; `texts` are those of the recipe, `documents` may be empty lines."""
    import pandera.pandas as pa

    def check(rule: str, holds) -> pa.Check:
        return pa.Check(holds, element_wise=True, error=rule)

    found: dict[str, list[pa.Check]] = {}
    for name, column in columns.model_dump().items():
        if column is None:
            continue
        checks = found.setdefault(column, [])
        if name == "score":
            low, high = entry.score_range
            checks += [check("is not a number such as 4 or 2.5", lambda t: math.isfinite(reading.number(t))),
                       check(f"is outside {low:g} to {high:g} (score_range)",
                             lambda t, low=low, high=high: low <= reading.number(t) <= high)]
        elif name == "label":
            checks.append(check(f"is not a label of the schema; labels are {', '.join(labels)}, or their places 0 to "
                                f"{len(labels) - 1}", lambda t: reading.label(t, labels) is not None))
        elif name == "vector":
            checks.append(check("is not a vector of finite numbers", lambda v: isinstance(v, list) and v != []
                                and all(map(math.isfinite, v))))
        else:
            if name in texts and not documents:
                checks.append(check("is empty; write the text or remove the row", lambda t: t.strip() != ""))
            checks += [
                check(f"is longer than {contract.max_characters} characters (contract.max_characters)",
                      lambda t: len(t) <= contract.max_characters),
                check("has a control character; remove it", lambda t: CONTROL.search(t) is None),
                check(HALF, lambda t: SURROGATE.search(t) is None)]
    wide = []
    if {"positive", "negative"} <= set(texts):
        positive, negative = columns.positive, columns.negative
        wide.append(pa.Check(lambda frame: frame[positive].map(str.strip) != frame[negative].map(str.strip),
                             error=f"is the text of {positive} too; remove the row"))
    return pa.DataFrameSchema({column: pa.Column(None, checks) for column, checks in found.items()}, wide,
                              name=columns.negative if wide else None)


def check(rows: Sequence[Mapping], rules) -> dict[int, tuple[str, str]]:
    """{place of a bad row: (column, the first rule it breaks)}."""
    import pandas as pd
    import pandera.errors

    try:
        with pd.option_context("future.infer_string", False):       # Arrow's strings hold no half a surrogate pair
            rules.validate(pd.DataFrame(list(rows), dtype=object), lazy=True)
    except pandera.errors.SchemaErrors as errors:
        order = {column: place for place, column in enumerate(rules.columns)}
        found: dict[int, tuple[int, int, str, str]] = {}
        for case in errors.failure_cases.to_dict("records"):
            whole = case["schema_context"] != "Column"      # a rule of the row, told of its last column
            column = rules.name if whole else case["column"]
            problem = (len(order) if whole else order[column], case["check_number"], column, case["check"])
            place = int(case["index"])
            found[place] = min(problem, found.get(place, problem))
        return {place: (column, rule) for place, (_, _, column, rule) in found.items()}
    return {}
