"""A model, what it is measured against and the frozen test splits -> metrics with intervals and every prediction.

python -m steps.evaluate RECIPE DATA MODEL FOLDER
python -m steps.evaluate --reference NAME FOLDER        one of `references` on its recipe's data, alone
"""

import csv
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from steps import batching, checkpoint, command, params, provenance, recipes, slicing, statistics, tasks, vocabulary
from steps.schema import Evaluate, InputError, Recipe


def main(arguments: Sequence[str]) -> None:
    provenance.check_environment()
    project = params.load()
    alone = arguments[0] == "--reference"
    if alone:
        _, name, folder = arguments
        recipe, model = project.references[name].recipe, project.references[name].model
        data = f"data/prepared/{recipe}"
    else:
        recipe, data, model, folder = arguments
        if checkpoint.DRIVEN in os.environ:     # then DVC has what was trained
            shutil.rmtree(checkpoint.PLACE / recipe, ignore_errors=True)
    evaluate(recipe, project.recipe(recipe), project, Path(data), Path(model), Path(folder), alone)


def evaluate(name: str, settings: Recipe, project: params.Project, data: Path, model: Path, folder: Path,
             alone: bool = False) -> None:
    """Writes metrics.json, predictions.csv and, for the further tasks, tasks.csv into `folder`.

    metrics.json: `rows` of test, METRIC the score that decides with its bootstrap intervals and the gain's (examples
    resampled together for both models), `base` and `model` every score, `slices` the deciding one on parts of test,
    `tasks` the same of each further task. The base of a classifier is the majority class of train.
    """
    import torch

    torch.set_num_threads(project.threads)
    recipe, names = recipes.get(name), label_names(settings)
    kind = importlib.import_module(f"steps.{settings.kind}")
    judged = {"model": kind.load(model, settings)}
    if settings.kind == "classification" and (other := kind.other_labels(judged["model"], settings)):
        raise InputError(f"{model} cannot be scored: {other}; " + (
            "name a classifier of these labels, in this order, under references" if alone else
            f"give recipes.{name}.prepare.labels those of the model in its order, or train it again"))
    if alone:
        vocabulary.check(model, judged["model"].tokenizer)
        vocabulary.check_length(f"recipes.{name}.prepare.max_length", settings.prepare.max_length, model)
    elif settings.kind == "embedding":
        judged["base"] = kind.load(Path(settings.base_model), settings)
    predicted: dict[str, dict[str, list]] = {}

    def judge(task: ModuleType, metric: str, split: str) -> dict:
        labels = batching.labels(batching.load(data / f"{split}.arrow"))
        texts = batching.texts(data / f"{split}.arrow", [*task.TEXTS, "source"])
        outputs = {who: kind.outputs(encoder, [texts[c] for c in task.TEXTS], settings.evaluate.batch_size)
                   for who, encoder in judged.items()}
        scores = {who: rounded(task.scores(found, labels)) for who, found in outputs.items()}
        for who, found in scores.items():
            if bad := [k for k, v in found.items() if not np.isfinite(v)]:
                raise InputError(f"{who} {bad[0]} on {data / split}.arrow is not a number: the test labels are "
                                 "constant, or the embeddings have collapsed")
        predictions = {who: task.prediction(found, labels) for who, found in outputs.items()}
        if settings.kind == "classification" and not alone:
            predictions["base"] = kind.baseline(data / "train.arrow", labels)
            scores["base"] = {m: round(float(s(labels, predictions["base"])), 6) for m, s in task.STATISTICS.items()}
        gold = labels if labels.ndim == 1 else np.ones(len(labels))
        statistic = task.STATISTICS[metric]
        found = {"rows": len(gold), "metric": metric,
                 metric: intervals(statistic, gold, predictions, settings.evaluate, project.seed), **scores,
                 "slices": slices(statistic, task, gold, predictions, texts, settings, project.seed)}
        predicted[split] = {"gold": written(gold.astype(np.float32), names),       # as it is stored
                            **{w: written(predictions[w], names) for w in sorted(predictions)},
                            **{column: texts[column] for column in task.TEXTS}}
        for who in ("base", "model"):
            if who in predictions:
                print(f"{split}, {who}: {metric} {found[metric][who]:.4f} on {len(gold)} rows", flush=True)
        return found

    metrics = judge(recipe.TASK, recipe.METRIC, "test")
    metrics["tasks"] = {}
    for key, entry in settings.further_tasks().items():
        task = tasks.get(entry.task)
        metric = recipe.METRIC if recipe.METRIC in task.STATISTICS else task.METRIC
        metrics["tasks"][key] = judge(task, metric, f"tasks/{key}")
    with command.whole(folder) as partial:
        write_rows(partial / "predictions.csv", list(predicted["test"]),
                   zip(*predicted.pop("test").values(), strict=True))
        write_rows(partial / "tasks.csv", ["task", "example"], (
            (split.removeprefix("tasks/"), json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False))
            for split, columns in predicted.items() for row in zip(*columns.values(), strict=True)))
        (partial / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    return {k: round(float(v), 6) for k, v in scores.items()}


def intervals(statistic: Callable, labels: np.ndarray, predictions: Mapping[str, np.ndarray], settings: Evaluate,
              seed: int) -> dict[str, float]:
    """The deciding metric of each model and the gain over the base, each with low and high."""
    def gain(labels, base, model):
        return statistic(labels, model) - statistic(labels, base)

    cases = {who: (statistic, (labels, found)) for who, found in sorted(predictions.items())}
    if "base" in predictions:
        cases["gain"] = (gain, (labels, predictions["base"], predictions["model"]))
    found = {}
    for name, (value, data) in cases.items():
        low, high = statistics.interval(value, data, settings.resamples, settings.confidence, seed)
        found |= {name: float(value(*data)), f"{name}_low": low, f"{name}_high": high}
    return rounded(found)


def slices(statistic: Callable, task: ModuleType, labels: np.ndarray, predictions: Mapping[str, np.ndarray],
           texts: Mapping[str, list[str]], settings: Recipe, seed: int) -> dict[str, dict]:
    """The deciding metric by length (thirds, in words), by label and by source, where a metric can be had there."""
    found = {}
    for name, chosen in slicing.parts(task, labels, texts, label_names(settings)).items():
        value = statistics.accuracy if name.startswith(slicing.LABEL) else statistic
        score = intervals(value, labels[chosen], {who: p[chosen] for who, p in predictions.items()},
                          settings.evaluate, seed)
        if all(np.isfinite(v) for v in score.values()):
            found[name] = {"rows": int(chosen.sum()), **score}
    return found


def label_names(settings: Recipe) -> list[str]:
    return settings.prepare.labels if settings.kind == "classification" else []


def written(values: np.ndarray, names: Sequence[str]) -> list[str]:
    """Classes by their names, numbers with all their digits: rounded, some would be ties."""
    return [names[int(v)] for v in values] if names else [str(v) for v in values]


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    command.main(main)
