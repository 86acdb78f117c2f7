"""Two models and the recipe's test splits -> the evidence on which the gate decides, measured now on the same rows."""

import importlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from steps import batching, gate, params, recipes, seen, slicing, statistics, tasks
from steps.gate import Comparison, Interval, Pair
from steps.schema import Recipe


@dataclass(frozen=True)
class Contestant:
    """A model's folder, its tokenizer's where that lies elsewhere, and the keys of the rows it was trained on.

    Without a folder it is the majority class of train, what a classifier's base model amounts to.
    """

    folder: Path | None
    tokenizer: Path | None = None
    known: np.ndarray | None = None


def measure(name: str, settings: Recipe, project: params.Project, data: Path, challengers: Sequence[Contestant],
            champion: Contestant, first: bool) -> tuple[dict, dict[str, list[dict]]]:
    """The measured fields of gate.Evidence, and the examples that the first challenger won and lost most.

    Classifiers of other labels than the recipe's are not scored: what was found is then `broken`, which the gate holds.

    Further challengers are the same training from other seeds: the score is then the mean over seeds, and its
    interval covers the choice of seeds as well as of rows. Test rows that a model was trained on are left out.
    """
    import torch

    torch.set_num_threads(project.threads)
    recipe, rules = recipes.get(name), settings.gate
    kind = importlib.import_module(f"steps.{settings.kind}")
    models = [_load(kind, one, settings) for one in (*challengers, champion)]
    if settings.kind == "classification" and (broken := labels_broken(name, kind, models, settings)):
        return {"metric": recipe.METRIC, "broken": broken}, {"won": [], "lost": []}
    known = np.unique(np.concatenate([one.known for one in (*challengers, champion) if one.known is not None]))

    def outputs(model, columns: list[list[str]]):
        """As kind.outputs; a text that stands in several rows or columns is embedded once."""
        if settings.kind == "classification":
            return kind.outputs(model, columns, settings.evaluate.batch_size)
        place = {text: number for number, text in enumerate(dict.fromkeys(itertools.chain(*columns)))}
        vectors, = kind.outputs(model, [list(place)], settings.evaluate.batch_size)
        return [vectors[[place[text] for text in column]] for column in columns]

    def judged(task: ModuleType, split: str) -> tuple[np.ndarray, dict, list[np.ndarray], np.ndarray]:
        path = data / f"{split}.arrow"
        labels = batching.labels(batching.load(path))
        texts = batching.texts(path, [*task.TEXTS, "source"])
        columns = [texts[c] for c in task.TEXTS]
        said = [kind.baseline(data / "train.arrow", labels) if model is None else
                task.prediction(outputs(model, columns), labels) for model in models]
        gold = labels if labels.ndim == 1 else np.ones(len(labels))
        return gold, texts, said, ~seen.rows(columns, known)

    def compare(statistic: Callable, gold: np.ndarray, said: list[np.ndarray]) -> Comparison:
        return comparison(statistic, gold, said[:-1], said[-1], rules, project.seed)

    gold, texts, said, kept = judged(recipe.TASK, "test")
    statistic = recipe.TASK.STATISTICS[recipe.METRIC]
    found = {"metric": recipe.METRIC, "excluded": int((~kept).sum()), "seeds": len(challengers),
             "now": Pair(float(statistic(gold, said[0])), float(statistic(gold, said[-1]))),
             "milliseconds": milliseconds(kind, models[0], models[-1], texts[recipe.TASK.TEXTS[0]], rules.latency,
                                          first),
             "megabytes": Pair(megabytes(challengers[0]), megabytes(champion)), "slices": {}, "guards": {}}
    gold, said = gold[kept], [s[kept] for s in said]
    texts = {column: [t for t, keep in zip(values, kept, strict=True) if keep] for column, values in texts.items()}
    if len(gold) < 2:
        return found, {"won": [], "lost": []}
    found["test"] = compare(statistic, gold, said)
    found["own"] = float(statistic(gold, said[0]) - statistic(gold, said[-1]))
    names = settings.prepare.labels if settings.kind == "classification" else []
    for part, chosen in slicing.parts(recipe.TASK, gold, texts, names).items():
        value = statistics.accuracy if part.startswith(slicing.LABEL) else statistic
        if part in rules.slices:
            found["slices"][part] = compare(value, gold[chosen], [s[chosen] for s in said])
    for key, entry in settings.further_tasks().items():
        if key in rules.guards:
            task = tasks.get(entry.task)
            metric = recipe.METRIC if recipe.METRIC in task.STATISTICS else task.METRIC
            labels, _, theirs, clean = judged(task, f"tasks/{key}")
            if clean.sum() >= slicing.SMALLEST_SLICE:
                found["guards"][key] = compare(task.STATISTICS[metric], labels[clean], [t[clean] for t in theirs])
    return found, examples(statistic, gold, said[0], said[-1], texts, recipe.TASK.TEXTS, names, rules.examples)


def labels_broken(name: str, kind: ModuleType, models: Sequence, settings: Recipe) -> dict[str, str]:
    """{rule: why} of the sides whose classes are not the recipe's labels in their order; the champion is the last."""
    remedies = {
        "challenger": f"train it again: evergreen run {name}",
        "champion": "if they were meant to change, put the challenger in charge by hand: evergreen rollback "
                    f"{name} --to NUMBER"}
    sides = [*(("challenger", model) for model in models[:-1]), ("champion", models[-1])]
    return {f"labels, {who}": f"{why}; {remedies[who]}" for who, model in sides
            if model is not None and (why := kind.other_labels(model, settings))}


def comparison(statistic: Callable, labels: np.ndarray, challengers: Sequence[np.ndarray], champion: np.ndarray,
               rules: gate.Rules, seed: int) -> Comparison:
    """Both scores and the gain with percentile bootstrap intervals; rows are resampled for all models together."""
    random = np.random.default_rng(seed)

    def values(labels: np.ndarray, *predictions: np.ndarray) -> np.ndarray:
        """[3, ...] challenger, champion and gain."""
        *each, theirs = statistic(labels, np.stack(predictions))
        ours = over_seeds(np.stack(each), random)
        return np.stack([ours, theirs, ours - theirs])

    data = (labels, *challengers, champion)
    points = values(*data)
    bounds = statistics.intervals(values, data, rules.resamples, rules.confidence, seed)
    return Comparison(len(labels), *(      # resamples could leave a bad row out
        Interval(float(point), *(ends if np.isfinite(point) else (float("nan"), float("nan"))))
        for point, ends in zip(points, bounds, strict=True)))


def over_seeds(each: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """[S] or [S, resamples] scores of S seeds -> their mean, in each resample of rows with an error of Student's t.

    So that few seeds cover what they should: drawn anew from among themselves they would vary too little. Student
    1908, The Probable Error of a Mean, https://doi.org/10.1093/biomet/6.1.1.
    """
    count, centre = len(each), each.mean(axis=0)
    if each.ndim == 1 or count == 1:
        return centre
    return centre + each.std(axis=0, ddof=1) / np.sqrt(count) * random.standard_t(count - 1, size=centre.shape)


def milliseconds(kind: ModuleType, challenger, champion, texts: Sequence[str], limits: gate.Latency,
                 first: bool) -> Pair:
    """The mean over single texts of each one's best of several rounds, on one thread; the models take turns.

    So a busy machine slows both alike; two threads that wait for each other on shared cores would not (of one model
    against itself, ratios up to 2.4 were seen). Nothing is measured where no rule asks for it: a `first` model has no
    champion to be as fast as.
    """
    import torch

    if limits.milliseconds is None and (first or limits.ratio is None):
        return gate.NOTHING
    chosen = list(texts[:limits.texts])
    models = {who: model for who, model in zip(Pair._fields, (challenger, champion), strict=True) if model is not None}
    best = {who: np.full(len(chosen), np.inf) for who in models}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(limits.rounds + 1):      # the first warms up
        for number, text in enumerate(chosen):
            for who, model in models.items():
                began = time.perf_counter()
                kind.outputs(model, [[text]], 1)
                best[who][number] = min(best[who][number], time.perf_counter() - began)
    torch.set_num_threads(threads)
    return Pair(*(1000 * float(best[who].mean()) if who in best else None for who in Pair._fields))


def megabytes(one: Contestant) -> float | None:
    """Of the weights, in millions of bytes."""
    if one.folder is None:
        return None
    return sum(path.stat().st_size for path in one.folder.glob("*.safetensors")) / 1e6


def examples(statistic: Callable, gold: np.ndarray, ours: np.ndarray, theirs: np.ndarray,
             texts: Mapping[str, list[str]], columns: Sequence[str], names: Sequence[str],
             count: int) -> dict[str, list[dict]]:
    """The rows whose answer became better, and worse, by most: {"won": [...], "lost": [...]}."""
    change = rightness(statistic, gold, ours) - rightness(statistic, gold, theirs)
    order = np.argsort(-change, kind="stable")

    def shown(value: float) -> str | float:
        return names[int(value)] if names else round(float(value), 4)

    def row(i: int) -> dict:
        return {**{c: texts[c][i] for c in columns}, "gold": shown(gold[i]), "champion": shown(theirs[i]),
                "challenger": shown(ours[i]), "change": round(float(change[i]), 4)}

    return {"won": [row(i) for i in order[:count] if change[i] > 0],
            "lost": [row(i) for i in order[::-1][:count] if change[i] < 0]}


def rightness(statistic: Callable, gold: np.ndarray, said: np.ndarray) -> np.ndarray:
    """[n] how right each answer is: minus the distance of ranks for a correlation, else 1 or 0."""
    from scipy.stats import rankdata

    if statistic in (statistics.spearman, statistics.pearson):
        return -np.abs(rankdata(said) - rankdata(gold)) / len(gold)
    return said if statistic is statistics.mean else (said == gold).astype(float)


def _load(kind: ModuleType, one: Contestant, settings: Recipe):
    if one.folder is None:
        return None
    return kind.load(one.folder, settings, **({} if one.tokenizer is None else {"tokenizer": one.tokenizer}))
