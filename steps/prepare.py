"""A raw data set -> train, dev and test as Arrow files, validated and tokenized once.

python -m steps.prepare RECIPE FOLDER
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType

from steps import command, contract, decontamination, params, provenance, reading, recipes, splitting, tasks, vocabulary
from steps.contract import Findings
from steps.schema import InputError, Recipe
from steps.writing import Writer

SPLITS = ("train", "dev", "test")
REFUSED = Path(".evergreen/refused")     # the lists of data that were not good enough
Files = Mapping[str, list[Path]]        # those of each split


def main(arguments: Sequence[str]) -> None:
    recipe, folder = arguments
    provenance.check_environment()
    prepare(recipes.get(recipe), params.load().recipe(recipe), Path(folder))


def prepare(recipe: ModuleType, settings: Recipe, folder: Path) -> None:
    """Writes {train,dev,test}.arrow, tasks/NAME.arrow for the recipe's tasks and summary.json, all or nothing.

    An Arrow file has the text columns, for each NAME of them NAME_input_ids (token ids with special tokens, cut at
    max_length), and `label` and `source` where there are such; text for noise also NAME_word_starts and `row`.
    report.json counts what was found in the data, quarantine.csv and overlaps.csv list what was left out and why.
    Raises InputError naming file, line and value of bad rows, where they are more than the contract allows, and every
    other reason not to train on the data; the lists are then in REFUSED.
    """
    dataset, refused = Path(settings.dataset), REFUSED / folder.name
    shutil.rmtree(refused, ignore_errors=True)
    with command.whole(folder) as partial:
        found = fill(recipe, settings, partial, reading.splits(dataset), reading.splits(Path(settings.suite)))
        source = json.loads((dataset / "source.json").read_text(encoding="utf-8"))
        found.stops += contract.unlicensed(settings.dataset, source.get("licence"), settings.contract)
        if found.stops and (lists := found.keep_lists(refused)):
            found.stops.append(f"every row that was left out: {lists}")
        found.refuse()
        for line in found.said():
            print(f"{line}; see {folder}/report.json and the lists beside it", flush=True)
        splits = {split: {key: counts[key] for key in ("rows", "truncated")} for split, counts in found.written.items()}
        for name, values in (("summary", {"source": source, "splits": splits}), ("report", found.report())):
            (partial / f"{name}.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n",
                                                  encoding="utf-8")


def fill(recipe: ModuleType, settings: Recipe, folder: Path, files: Files, suite: Files) -> Findings:
    """Reads, checks and writes all rows; what speaks against training on them is among the findings' `stops`."""
    (folder / "tasks").mkdir(parents=True)
    found = Findings(settings.contract, folder)
    try:
        base_model = Path(settings.base_model)
        vocabulary.check_length(f"recipes.{recipe.__name__.rpartition('.')[2]}.prepare.max_length",
                                settings.prepare.max_length, base_model)
        if hasattr(recipe, "check"):
            recipe.check(base_model)
        if "train" not in files:
            raise InputError(f"{settings.dataset} has no train file; declare it under splits in params.yaml")
        _fill(recipe, settings, Writer(base_model, settings.prepare.max_length, folder, found), files, suite)
    except InputError as error:
        found.stops += str(error).splitlines()
    return found


def _fill(recipe: ModuleType, settings: Recipe, writer: Writer, files: Files, suite: Files) -> None:
    found, names, unlabelled = writer.found, recipes.texts(recipe, settings.prepare), recipes.unlabelled(recipe)
    if unlabelled:
        first = next(iter(settings.tasks.values()))
        held = {split: (recipe.TASK, first, task_rows(first, settings, suite, name, split, found))
                for split, name in (("dev", first.dev), ("test", first.test))}
        train = islice(train_rows(recipe, settings, files["train"], found), settings.prepare.limit)
    else:
        splits = labelled(recipe, settings, files, found)
        held = {split: (recipe.TASK, settings.prepare, splits[split]) for split in SPLITS[1:]}
        train = splits["train"]
        found.distribution("train", [e.get("label") for e in train], recipes.labels(recipe, settings.prepare))
        found.repeats["train"] = decontamination.repeats(train, names)
    task, entry, rows = held["dev"]
    held["dev"] = task, entry, decontamination.apart(rows, held["test"][2], task.TEXTS, settings.contract, found)
    for name, entry in settings.further_tasks().items():
        split = f"tasks/{name}"
        held[split] = (tasks.get(entry.task), entry, task_rows(entry, settings, suite, entry.test, split, found))
    evaluation = decontamination.Evaluation(settings.contract, found)
    for split, (task, entry, rows) in held.items():
        found.distribution(split, [e.get("label") for e in rows], getattr(entry, "labels", ()))
        found.repeats[split] = decontamination.repeats(rows, task.TEXTS)
        evaluation.add(split, rows, task.TEXTS, single=1 in (len(names), len(task.TEXTS)))
    train = evaluation.without(train, names)
    if unlabelled:
        writer.write_text(train, settings.prepare.held_out, getattr(recipe, "WORDS", False))
        found.settle("train")
    else:
        writer.write("train", names, list(train))
    if (count := found.written["train"]["rows"]) < settings.contract.min_rows:
        found.stops.append(f"train has {count} rows, fewer than contract.min_rows ({settings.contract.min_rows})")
    for split, (task, _, rows) in held.items():
        writer.write(split, task.TEXTS, rows)
    if noise := getattr(settings.prepare, "noise", None):
        writer.write_noised(noise)


def labelled(recipe: ModuleType, settings: Recipe, files: Files, found: Findings) -> dict[str, list[dict]]:
    """The rows of train, dev and test; a missing dev or test is taken from train, whole groups of equal texts."""
    task, prepare = recipe.TASK, settings.prepare
    held_out = getattr(recipe, "held_out", task.example)
    splits = {"train": list(islice(train_rows(recipe, settings, files["train"], found), prepare.limit))}
    found.settle("train")
    rules = contract.rules(prepare.columns, task.TEXTS, prepare, getattr(prepare, "labels", ()), settings.contract)
    for split in SPLITS[1:]:
        if split in files:
            splits[split] = [held_out(row, prepare) for row in contract.rows(
                files[split], split, prepare.columns, prepare.header, rules, found)]
            found.settle(split)
    if missing := [s for s in ("test", "dev") if s not in splits]:
        if recipes.texts(recipe, prepare) != task.TEXTS:
            raise InputError(f"{settings.dataset} has no {missing[0]} file, and train's rows are not of its kind; "
                             "declare it under splits in params.yaml")
        splits = splitting.split_off(splits, task.TEXTS, missing, prepare.split)
    if prepare.subset:
        splits = splitting.subset(splits, prepare.subset)
    for split, rows in splits.items():
        if len(rows) < 2:
            raise InputError(f"{settings.dataset}: the {split} split has {len(rows)} rows; a metric needs at least 2: "
                             "give the data set more rows, or change prepare.split in params.yaml")
    return {s: splits[s] for s in SPLITS}


def train_rows(recipe: ModuleType, settings: Recipe, files: list[Path], found: Findings) -> Iterator[dict]:
    """Every good row of train's files as the recipe's examples, one after the other."""
    columns, prepare = recipes.columns(recipe, settings.prepare), settings.prepare
    rules = contract.rules(columns, recipes.texts(recipe, prepare), prepare, recipes.labels(recipe, prepare),
                           settings.contract, documents=recipes.unlabelled(recipe))
    for row in contract.rows(files, "train", columns, prepare.header, rules, found):
        yield from recipes.examples(recipe, row, prepare)


def task_rows(entry, settings: Recipe, suite: Files, name: str, split: str, found: Findings) -> list[dict]:
    """The good rows of the suite's split `name`, which is the recipe's `split`."""
    if name not in suite:
        raise InputError(f"{settings.suite} has no split {name!r}, which tasks in params.yaml ask for; it has "
                         f"{', '.join(suite)}: declare it under splits")
    task = tasks.get(entry.task)
    rules = contract.rules(entry.columns, task.TEXTS, entry, getattr(entry, "labels", ()), settings.contract)
    rows = [task.example(row, entry) for row in contract.rows(
        suite[name], split, entry.columns, entry.header, rules, found)]
    found.settle(split)
    if len(rows) < 2:
        raise InputError(f"{suite[name][0]} has {len(rows)} good rows; a metric needs at least 2")
    return rows


if __name__ == "__main__":
    command.main(main)
