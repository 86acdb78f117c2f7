"""Recipes about to run -> every reason they would fail by later that shows in seconds: an InputError with the fixes."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from flows import graph, room
from steps import contract, download, params, reading, recipes, vocabulary
from steps.schema import InputError, Recipe
from steps.sources import LocalDataset, LocalModel


def check_all(plan: Sequence[graph.Stage], project: params.Project, stale: Iterable[str]) -> None:
    """Looks at every recipe that the plan trains, as `check` does."""
    check([stage.name.removeprefix("train@") for stage in plan if stage.name.startswith("train@")], project, stale,
          away(plan, project) | idle(plan, stale))


def check(names: Iterable[str], project: params.Project, stale: Iterable[str] = (), away: Iterable[str] = ()) -> None:
    """Raises InputError naming all that is wrong; prints what each training will need.

    Of data and models that `stale` stages make, what lies here is of before, and says nothing. Recipes that are trained
    `away`, or not at all, need no room here.
    """
    problems, stale = list(room.device_problems()), set(stale)
    for name in names:
        settings = project.recipe(name)
        problems += [f"{name}: {problem}" for problem in (*columns(name, settings, project, stale),
                                                          *licences(settings, project),
                                                          *lengths(name, settings, project, stale),
                                                          *misfits(name, settings, project, stale),
                                                          *descent(name, settings, project, stale))]
        if name in away:
            continue
        if model := model_folder(settings.base_model, project, stale):      # else one that is yet to come
            try:
                needs, too_much = room.needs(name, settings, model)
                print(needs, flush=True)
            except InputError as error:
                too_much = [f"{name}: {error}"]
            problems += too_much
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def away(plan: Iterable[graph.Stage], project: params.Project) -> set[str]:
    """The recipes that a server lets other machines train, which look at their own room; so do we before we do it."""
    return {stage.name.removeprefix("train@") for stage in plan if os.environ.get("PREFECT_API_URL")
            and stage.name.startswith("train@") and stage.work_pool not in (None, project.work_pool)}


def idle(plan: Iterable[graph.Stage], stale: Iterable[str]) -> set[str]:
    """The recipes whose training is as it was, with all that it needs."""
    works = set(stale)
    for stage in plan:
        if not works.isdisjoint(stage.upstream):
            works.add(stage.name)
    return {stage.name.removeprefix("train@") for stage in plan
            if stage.name.startswith("train@") and stage.name not in works}


def before(stage: str) -> None:
    """Looks at the room for a stale training once more, whose base model may have come in this run.

    Raises InputError where there is too little.
    """
    kind, _, name = stage.partition("@")
    if kind == "train" and graph.stale([stage]):
        project = params.load()
        settings = project.recipe(name)
        model = model_folder(settings.base_model, project)
        if model and (too_much := room.needs(name, settings, model)[1]):
            raise InputError("\n".join(too_much))


def makers(path: str, project: params.Project) -> set[str]:
    """The stages that make a data set."""
    name = Path(path).name
    if path.startswith("data/taught/"):
        return {f"teach@{name}"} | makers(project.teachers[name].dataset, project)
    how = "import" if isinstance(project.sources("datasets").get(name), LocalDataset) else "download"
    return {f"{how}_dataset@{name}"}


def local(path: str, project: params.Project) -> LocalDataset | None:
    """The entry of a data set that lies on this machine."""
    entry = project.sources("datasets").get(Path(path).name) if path.startswith("data/raw/") else None
    return entry if isinstance(entry, LocalDataset) else None


def files(path: str, project: params.Project, stale: Iterable[str] = ()) -> dict[str, list[Path]] | None:
    """{split: its files} of a data set, where they lie now; None of one that is yet to be fetched or taught (anew)."""
    if not (entry := local(path, project)):
        return reading.splits(Path(path)) if Path(path).exists() and makers(path, project).isdisjoint(stale) else None
    download.local_files(Path(path).name, entry)
    source = Path(entry.path)
    return {split: [source if source.is_file() else source / file for file in names]
            for split, names in entry.splits.items()}


def columns(name: str, settings: Recipe, project: params.Project, stale: Iterable[str] = ()) -> Iterator[str]:
    """What is wrong with the headers and the first rows of the files that lie here."""
    module, prepare = recipes.get(name), settings.prepare
    wanted = [(settings.dataset, "train", recipes.columns(module, prepare), prepare.header)]
    if not recipes.unlabelled(module):
        wanted += [(settings.dataset, split, prepare.columns, prepare.header) for split in ("dev", "test")]
    wanted += [(settings.suite, split, entry.columns, entry.header) for entry in settings.tasks.values()
               for split in (entry.dev, entry.test)]
    for path, split, names, header in wanted:
        try:
            for file in (files(path, project, stale) or {}).get(split, ()):
                next(reading.rows(file, names.wanted(), header, names.vectors()), None)
        except InputError as error:
            yield str(error)


def licences(settings: Recipe, project: params.Project) -> Iterator[str]:
    """Which licences are not allowed: of the data, of those it is judged on, of the first model and of a teacher."""
    data, models = [], [first_model(settings.base_model, project)]
    for path in (settings.dataset, settings.suite):
        if path.startswith("data/taught/"):
            teacher = project.teachers[Path(path).name]
            path = teacher.dataset
            models.append(first_model(teacher.model, project))
        data.append(path)
    for kind, paths in (("datasets", data), ("base_models", models)):
        for path in dict.fromkeys(paths):
            yield from contract.unlicensed(path, project.sources(kind)[Path(path).name].licence, settings.contract)


def lengths(name: str, settings: Recipe, project: params.Project, stale: Iterable[str]) -> Iterator[str]:
    """Which models that lie here are broken, or have no positions for texts as long as params.yaml lets them be."""
    own = f"recipes.{name}.prepare.max_length", settings.prepare.max_length
    wanted = [(*own, settings.base_model)]
    wanted += [(*own, other.model) for other in project.references.values() if other.recipe == name]
    for path in dict.fromkeys((settings.dataset, settings.suite)):
        if path.startswith("data/taught/"):
            teacher = project.teachers[Path(path).name]
            wanted.append((f"teachers.{Path(path).name}.max_length", teacher.max_length, teacher.model))
    for key, length, path in wanted:
        try:
            if model := model_folder(path, project, stale):
                vocabulary.check_length(key, length, model)
        except InputError as error:
            yield str(error)


def misfits(name: str, settings: Recipe, project: params.Project, stale: Iterable[str]) -> Iterator[str]:
    """Which models that lie here do not go together: a reference of other classes, a teacher of other dimensions."""
    def found(path: str, ask: Callable):
        model = model_folder(path, project, stale)
        with contextlib.suppress(InputError):       # of a model that is broken, as `lengths` says
            return ask(model) if model else None

    for key, other in project.references.items():
        if other.recipe == name and settings.kind == "classification" and other.model.startswith("models/base/") and (
                why := found(other.model, lambda model: vocabulary.other_classes(model, settings.prepare.labels))):
            yield (f"references.{key}.model = {other.model}: {why}; name a classifier of "
                   f"{', '.join(settings.prepare.labels)}, in this order")
    if settings.dataset.startswith("data/taught/"):
        key = f"teachers.{Path(settings.dataset).name}"
        teacher = project.teachers[Path(settings.dataset).name]
        vectors = teacher.dimensions or found(teacher.model, vocabulary.dimensions)
        student = found(settings.base_model, vocabulary.dimensions)
        if vectors and student and vectors != student:
            yield (f"{key}: its vectors have {vectors} dimensions and those of {settings.base_model} {student}; set "
                   f"{key}.dimensions to {student}")


def descent(name: str, settings: Recipe, project: params.Project, stale: Iterable[str]) -> Iterator[str]:
    """Why the model that a chain begins with cannot be trained as its later recipes do; prepare looks at the first."""
    module, model = recipes.get(name), model_folder(settings.base_model, project, stale)
    if model and hasattr(module, "check") and not settings.base_model.startswith("models/base/"):
        try:
            vocabulary.config(model)
            module.check(model)
        except InputError as error:
            yield str(error)


def model_folder(path: str, project: params.Project, stale: Iterable[str] = ()) -> Path | None:
    """Where the base model lies now; of a chain that was not trained yet (anew), the one it begins with."""
    if not Path(path).exists() or f"train@{Path(path).name}" in stale:
        path = first_model(path, project)
    if f"download_model@{Path(path).name}" in stale:
        return None
    entry = project.sources("base_models").get(Path(path).name) if path.startswith("models/base/") else None
    folder = Path(entry.path) if isinstance(entry, LocalModel) else Path(path)
    return folder if folder.is_dir() else None


def first_model(path: str, project: params.Project) -> str:
    """The base model that a chain of recipes begins with."""
    while not path.startswith("models/base/"):
        path = project.recipe(Path(path).name).base_model
    return path
