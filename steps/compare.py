"""Two versions of a recipe -> what differs: parameters, data, scores, slices, examples, and whose neighbours are whose.

Vectors are compared within a version alone: a text's neighbours under one, and its neighbours under the other.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steps import embed, provenance, registry, tracking
from steps.schema import InputError

FILES = ("metrics.json", "predictions.csv", "tasks.csv")
EXAMPLES = 5        # shown, those whose predictions differ most
WIDTH = 28          # of a version's column
DATA = ("dataset", "dataset_revision", "dataset_sha256", "dataset_licence", "test_sha256", "base_model",
        "base_model_revision", "base_model_sha256", "parent", "git_commit", "environment_sha256")


@dataclass(frozen=True)
class Side:
    """One of the two: its tags, its run's parameters, and its evaluation where that is still kept."""

    name: str
    tags: Mapping[str, str]
    parameters: Mapping[str, str]
    metrics: Mapping | None
    rows: list[dict[str, str]]


def compare(first: str, second: str, sample: int, neighbours: int) -> list[str]:
    """The lines that show the two side by side. `sample` texts are embedded, and `neighbours` of each looked at."""
    if sample <= neighbours or neighbours < 1:
        raise InputError(f"--sample {sample} --neighbours {neighbours}: a text of the sample needs that many others")
    found = tracking.client()
    left, right = (side(found, *registry.pick(found, name)) for name in (first, second))
    if left.name.partition("@")[0] != right.name.partition("@")[0]:
        raise InputError(f"{left.name} and {right.name} are of two recipes, which are judged by different things; "
                         "compare two versions of one")
    lines = [row("", left.name, right.name)]
    lines += section("parameters", left.parameters, right.parameters, sorted({*left.parameters, *right.parameters}))
    lines += section("made of", left.tags, right.tags, DATA)
    if left.tags.get("test_content_sha256") != right.tags.get("test_content_sha256"):
        lines.append("  the test rows differ: the scores below are not of the same test")
    lines += scores(left, right) + slices(left, right) + examples(left, right)
    return lines + neighbourhood(left, right, sample, neighbours)


def side(found, recipe: str, number: int) -> Side:
    version = found.get_model_version(recipe, str(number))
    kept = {name: tracking.kept(found, version.run_id, f"evaluation/{name}") for name in FILES}
    whole = all(kept.values()) and provenance.digest(
        {n: provenance.sha256(path) for n, path in kept.items()}) == version.tags.get("evaluation_sha256")
    return Side(f"{recipe}@{number}", version.tags, tracking.facts(found, version.run_id)[0],
                json.loads(kept["metrics.json"].read_text(encoding="utf-8")) if whole else None,
                read(kept["predictions.csv"]) if whole else [])


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def row(label: str, left: str, right: str) -> str:
    return f"  {label:<32}{left:>{WIDTH}}  {right:>{WIDTH}}"


def section(title: str, left: Mapping[str, str], right: Mapping[str, str], keys) -> list[str]:
    """The keys whose values differ; a parameter that a version is too old to have was null."""
    different = [key for key in keys if str(left.get(key)) != str(right.get(key))]
    values = [row(key, *(cut(str(s.get(key, "none"))) for s in (left, right))) for key in different]
    return [title, *values] if values else [f"{title}: no difference"]


def cut(value: str) -> str:
    """The value, or its beginning and its end: digests differ in both, paths and names in one of them."""
    return value if len(value) <= WIDTH else f"{value[:WIDTH // 2 - 2]}...{value[-WIDTH // 2 + 1:]}"


def scores(left: Side, right: Side) -> list[str]:
    """Every score of the test sets, the deciding one with its interval."""
    if lost := [s.name for s in (left, right) if s.metrics is None]:
        return [f"scores: not shown, because {' and '.join(lost)} no longer has the evaluation it was registered with "
                "(its run keeps that of a later version, or none)"]
    lines = ["scores"]
    tests = {"": (left.metrics, right.metrics)} | {
        f"{task}: ": (found, right.metrics["tasks"][task]) for task, found in left.metrics["tasks"].items()
        if task in right.metrics["tasks"]}
    for test, both in tests.items():
        metric = both[0]["metric"]
        lines.append(row(test + metric, *(interval(m.get(metric)) for m in both)))
        lines += [row(test + other, *(f"{m['model'][other]:.4f}" if other in m["model"] else "none" for m in both))
                  for other in both[0]["model"] if other != metric]
    return lines


def interval(found: Mapping | None) -> str:
    return f"{found['model']:.4f} ({found['model_low']:.4f} to {found['model_high']:.4f})" if found else "none"


def slices(left: Side, right: Side) -> list[str]:
    if not left.metrics or not right.metrics:
        return []
    ours, theirs = left.metrics["slices"], right.metrics["slices"]
    lines = [row(f"{name}, {ours[name]['rows']} rows", *(interval(s[name]) for s in (ours, theirs)))
             for name in ours if name in theirs]
    return ["slices", *lines] if lines else []


def examples(left: Side, right: Side) -> list[str]:
    """The test rows that both predicted, those first on which they differ most; of classes, the share that changed."""
    if not left.rows or not right.rows:
        return []
    text = [column for column in left.rows[0] if column not in ("gold", "base", "model", "source")]
    other = {tuple(r.get(c) for c in text): r for r in right.rows}
    pairs = [(r, other[key]) for r in left.rows if (key := tuple(r[c] for c in text)) in other]
    if not pairs:
        return ["examples: no test row is in both"]
    numbers = all(is_number(p["model"]) for pair in pairs for p in pair)
    gap = [abs(float(a["model"]) - float(b["model"])) if numbers else float(a["model"] != b["model"])
           for a, b in pairs]
    changed = sum(g > 0 for g in gap)
    lines = [f"examples: {changed} of {len(pairs)} predictions differ ({100 * changed / len(pairs):.1f} %)"]
    most = sorted(range(len(pairs)), key=lambda i: -gap[i])[:EXAMPLES]
    for a, b in (pairs[i] for i in most if gap[i] > 0):
        gold, ours, theirs = (f"{float(x):.6f}" if numbers else x for x in (a["gold"], a["model"], b["model"]))
        lines += [row(f"gold {gold}", ours, theirs), f"    {' | '.join(a[c] for c in text)}"]
    return lines


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def neighbourhood(left: Side, right: Side, sample: int, count: int) -> list[str]:
    """How many of the nearest texts of each text are the same under both versions; encoders only."""
    texts = common_texts(left, right, sample)
    if len(texts) <= count:
        return []
    near = []
    for one in (left, right):
        if not embed.is_encoder(registry.resolve(one.name)[1]):
            return []
        model, *_ = embed.load(one.name)
        near.append(nearest(model.encode(texts, show_progress_bar=False), count))
    shared = [len({*a} & {*b}) for a, b in zip(*near, strict=True)]
    same = np.mean([a[0] == b[0] for a, b in zip(*near, strict=True)])
    return [f"neighbours: of the {count} nearest of {len(texts)} test texts, "
            f"{100 * np.mean(shared) / count:.1f} % are the same under both; the nearest one is for {100 * same:.1f} %"]


def common_texts(left: Side, right: Side, sample: int) -> list[str]:
    """Texts of both tests, each once, spread evenly over the test where there are more than the sample takes."""
    def of(one: Side) -> dict[str, None]:
        return dict.fromkeys(value for r in one.rows for column, value in r.items()
                             if column not in ("gold", "base", "model", "source"))
    theirs = of(right)
    both = [text for text in of(left) if text in theirs]
    if len(both) <= sample:
        return both
    return [both[i] for i in np.linspace(0, len(both) - 1, sample).astype(int)]


def nearest(vectors: np.ndarray, count: int) -> np.ndarray:
    """[n, count] the nearest others of each of n vectors by cosine, nearest first."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]
