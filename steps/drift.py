"""A sample of what users send and what a version was trained on -> their distances in length, words and meaning.

A distance counts where it is above its limit and above those of random divisions of all the texts (a permutation test).
Vocabulary: Jensen-Shannon distance (Lin 1991, https://doi.org/10.1109/18.61115); length: Kolmogorov-Smirnov statistic.
"""

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steps import embed, params, provenance, recipes, registry, tracking
from steps.params import Drift
from steps.schema import InputError, Recipe


@dataclass(frozen=True)
class Distance:
    """How far the sample is from training, how far random divisions are at most, and what is allowed."""

    name: str
    value: float
    usual: float
    limit: float

    @property
    def far(self) -> bool:
        return self.value > max(self.usual, self.limit)


def report(name: str, sample: Path, column: str, folders: Callable) -> tuple[registry.Version, bool, list[str]]:
    """Compares the texts of a file with those that a version was trained on: version, whether they are far, table.

    `folders(recipe)` says where the prepared data lies. Raises InputError where the data here is not that of the
    version, or the file has too few texts to tell.
    """
    project = params.load()
    version, folder = registry.resolve(name)
    data, limits = folders(version.recipe)["data"], project.drift
    check_snapshot(version, data)
    texts = list(embed.texts(sample, column))
    if len(texts) < limits.min_rows:
        raise InputError(f"{sample} has {len(texts)} texts and drift.min_rows in params.yaml asks for "
                         f"{limits.min_rows}; give more")
    found = distances(version.recipe, project.recipe(version.recipe), limits, folder, data, texts)
    lines = [f"{version.recipe}@{version.number}: {min(len(texts), limits.rows)} texts against those it was trained on",
             f"  {'':<12}{'distance':>9}{'usual':>9}{'limit':>9}",
             *(f"  {one.name:<12}{one.value:>9.4f}{one.usual:>9.4f}{one.limit:>9.4f}{'  drift' if one.far else ''}"
               for one in found)]
    return version, any(one.far for one in found), lines


def distances(recipe: str, settings: Recipe, limits: Drift, folder: Path, data: Path,
              texts: list[str]) -> list[Distance]:
    """Every distance of the texts from those of train, by the model in `folder`."""
    draw = np.random.default_rng(limits.seed)
    ours, theirs = (chosen(side, limits.rows, draw) for side in (training_texts(recipe, settings, data), texts))
    tokens, (what, made, distance) = reading_of(folder, settings, [*ours, *theirs])
    return [compare("length", np.array([len(ids) for ids in tokens]), kolmogorov_smirnov, len(ours), limits, draw),
            compare("vocabulary", counts(tokens), jensen_shannon, len(ours), limits, draw),
            compare(what, made, distance, len(ours), limits, draw)]


def check_snapshot(version, data: Path) -> None:
    try:
        source = json.loads((data / "summary.json").read_text(encoding="utf-8"))["source"]
    except FileNotFoundError:
        raise InputError(f"{data} is not here; first: evergreen run {version.recipe}") from None
    tags = tracking.client().get_model_version(version.recipe, str(version.number)).tags
    if provenance.digest(source["sha256"]) != tags.get("dataset_sha256"):
        raise InputError(f"{data} is not what {version.recipe}@{version.number} was trained on; compare with "
                         f"{version.recipe}@{registry.ALIAS}, the newest")


def chosen(texts: Sequence[str], most: int, draw: np.random.Generator) -> list[str]:
    """At most so many of the texts, drawn without order."""
    return [texts[i] for i in draw.permutation(len(texts))[:most]]


def training_texts(recipe: str, settings: Recipe, data: Path) -> list[str]:
    """The distinct texts of train."""
    from steps import batching

    columns = batching.texts(data / "train.arrow", recipes.texts(recipes.get(recipe), settings.prepare))
    return list(dict.fromkeys(text for column in columns.values() for text in column))


def reading_of(folder: Path, settings: Recipe, texts: list[str]) -> tuple[list, tuple[str, np.ndarray, Callable]]:
    """The model's tokens of each text, and what it makes of them: the classes of a classifier, an encoder's vectors."""
    kind = importlib.import_module(f"steps.{settings.kind}")
    if settings.kind == "classification":
        model = kind.load(folder / "model", settings, tokenizer=folder / "components/tokenizer")
        said = kind.outputs(model, [texts], settings.evaluate.batch_size)
        seen = "labels", np.eye(said.shape[1])[said.argmax(axis=1)], total_variation
    else:
        model = kind.load(folder / embed.ENCODER, settings)
        vectors, = kind.outputs(model, [texts], settings.evaluate.batch_size)
        seen = "centroid", vectors, cosine
    return model.tokenizer(texts, truncation=False, verbose=False)["input_ids"], seen


def counts(tokens: Sequence[Sequence[int]]):
    """[n, vocabulary] how often each token stands in each text, sparse."""
    from scipy.sparse import csr_array

    ends = np.cumsum([0, *(len(ids) for ids in tokens)])
    ids = np.concatenate([np.asarray(one, np.int64) for one in tokens])
    return csr_array((np.ones(len(ids)), ids, ends), shape=(len(tokens), int(ids.max()) + 1))


def compare(name: str, rows, distance: Callable, split: int, limits: Drift, draw: np.random.Generator) -> Distance:
    """The distance between rows before `split` (training) and after it, and the largest of random divisions."""
    def between(order: np.ndarray) -> float:
        return distance(rows[order[:split]], rows[order[split:]])

    count = rows.shape[0]
    usual = max(between(draw.permutation(count)) for _ in range(limits.draws))
    return Distance(name, between(np.arange(count)), usual, getattr(limits, name))


def kolmogorov_smirnov(one: np.ndarray, other: np.ndarray) -> float:
    points = np.union1d(one, other)
    below = [np.searchsorted(np.sort(side), points, side="right") / len(side) for side in (one, other)]
    return float(np.abs(below[0] - below[1]).max())


def jensen_shannon(one, other) -> float:
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(one.sum(axis=0), other.sum(axis=0), base=2))


def total_variation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.mean(axis=0) - other.mean(axis=0)).sum() / 2)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.mean(axis=0), other.mean(axis=0)
    return float(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
