"""metrics.json of an evaluation -> the tables that people read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from steps.schema import Recipe


@dataclass(frozen=True)
class Table:
    """One test set: what was measured on how many rows, and (who, value, low, high)."""

    name: str
    metric: str
    rows: int
    lines: list[tuple[str, float, float, float]] = field(default_factory=list)


def tables(recipe: str, settings: Recipe, test: Path, references: Mapping[str, Path]) -> list[Table]:
    """The recipe's own test and its further tasks; `references` are the folders of other models' evaluations."""
    metrics = _read(test)
    others = {name: _read(folder) for name, folder in references.items()}
    names = {"base": "majority class" if settings.kind == "classification" else "base model", "model": "new model",
             "gain": "gain"}
    parts = {recipe: (metrics, others)} | {
        f"{recipe} on {task}": (found, {n: o["tasks"][task] for n, o in others.items() if task in o["tasks"]})
        for task, found in metrics["tasks"].items()}
    return [Table(name, found["metric"], found["rows"], [
        *(_line(label, found, key) for key, label in names.items()),
        *(_line(other, measured, "model") for other, measured in compared.items())])
        for name, (found, compared) in parts.items()]


def _read(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def _line(label: str, found: dict, key: str) -> tuple[str, float, float, float]:
    values = found[found["metric"]]
    return label, values[key], values[f"{key}_low"], values[f"{key}_high"]


def text(table: Table, confidence: float) -> list[str]:
    """For a terminal."""
    width = max(12, *(len(who) for who, *_ in table.lines))
    return [f"{table.name}: {table.metric} on {table.rows} held-out test rows",
            f"  {'':{width}}{'score':>8}   {100 * confidence:g} % interval",
            *(f"  {who:{width}}{value:>8.4f}   {low:.4f} to {high:.4f}" for who, value, low, high in table.lines)]


def markdown(table: Table, confidence: float) -> list[str]:
    return [f"| {table.name}: {table.metric} on {table.rows} test rows | value | {100 * confidence:g} % interval |",
            "|---|---|---|",
            *(f"| {who} | {value:.4f} | {low:.4f} to {high:.4f} |" for who, value, low, high in table.lines), ""]


def slices(metrics: Mapping) -> list[str]:
    """The parts of the test set, as a Markdown table."""
    metric = metrics["metric"]
    lines = ["| slice | rows | base | this model | gain | low | high |", "|---|---|---|---|---|---|---|"]
    for name, s in metrics["slices"].items():
        lines.append(f"| {name} | {s['rows']} | {s['base']:.4f} | {s['model']:.4f} | {s['gain']:.4f} | "
                     f"{s['gain_low']:.4f} | {s['gain_high']:.4f} |")
    return [f"By slice, {metric} (of a single label: the share found):", "", *lines, ""] if len(lines) > 2 else []
