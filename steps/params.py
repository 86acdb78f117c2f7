"""params.yaml -> plain typed values, or an error that names key, value and rule."""

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from ruamel.yaml import YAML, YAMLError

from steps.schema import (
    PARAMS,
    InputError,
    Key,
    Name,
    Part,
    Positive,
    Recipe,
    Reference,
    Seed,
    Strict,
)
from steps.sources import BaseModels, Datasets, Published, Teacher
from steps.validation import validate

RECIPES = Path(__file__).parent / "recipes"


class Drift(Strict):
    """When a sample of what users send counts as other than what a version was trained on: the limits of distances."""

    rows: Positive              # texts compared, at most, of both
    min_rows: Positive          # below it nothing is said
    draws: Annotated[int, Field(ge=20)]     # random divisions of the texts, all of which must be nearer
    seed: Seed
    length: Part
    vocabulary: Part
    labels: Part
    centroid: Annotated[float, Field(ge=0.0, le=2.0)]
    cooldown_hours: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Project(Strict):
    seed: Seed
    threads: Positive
    checkpoint_seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    work_pool: Name
    drift: Drift
    datasets: Datasets
    base_models: BaseModels
    published: Published = Field(default_factory=Published)
    teachers: dict[Key, Teacher] = Field(default_factory=dict)
    references: dict[Name, Reference] = Field(default_factory=dict)
    recipes: dict[Name, Any]

    @model_validator(mode="after")
    def _upstream_exists(self):
        for what in ("datasets", "base_models"):
            here = getattr(self, what)
            if both := sorted(set(getattr(self.published, what)) & {*here.local, *here.remote}):
                raise ValueError(f"{both[0]!r} stands under {what} and under published.{what}; keep one")
        raw = {f"data/raw/{n}" for n in self.sources("datasets")}
        base = {f"models/base/{n}" for n in self.sources("base_models")}
        trained = {f"models/{n}" for n in self.recipes}
        wanted = [(f"teachers.{n}.{key}", getattr(t, key), known) for n, t in self.teachers.items()
                  for key, known in (("dataset", raw), ("model", base | trained))]
        wanted += [(f"references.{n}.model", r.model, base | trained) for n, r in self.references.items()]
        wanted += [(f"references.{n}.recipe", r.recipe, set(self.recipes)) for n, r in self.references.items()]
        for name, recipe in self.recipes.items():
            taught = {f"data/taught/{n}" for n in self.teachers}
            wanted += [(f"recipes.{name}.dataset", recipe.dataset, raw | taught),
                       (f"recipes.{name}.suite", recipe.suite, raw | taught),
                       (f"recipes.{name}.base_model", recipe.base_model, (base | trained) - {f"models/{name}"})]
        for key, value, known in wanted:
            if value not in known:
                choices = ", ".join(sorted(known)) or "none is declared"
                raise InputError(f"{key} = {value!r}: no such stage; known: {choices}")
        for name, entry in self.references.items():
            judged, other = self.recipes[entry.recipe], self.recipes.get(Path(entry.model).name)
            if entry.model in trained and other.kind != judged.kind:
                raise InputError(f"references.{name}.model = {entry.model!r} is a model of the kind {other.kind}, and "
                                 f"{entry.recipe} one of {judged.kind}; name one of that kind")
            if entry.model in trained and judged.kind == "classification" and (
                    other.prepare.labels != judged.prepare.labels):
                raise InputError(f"references.{name}.model = {entry.model!r} has other labels than {entry.recipe}; "
                                 f"name a classifier of {', '.join(judged.prepare.labels)}, in this order")
        return self

    def sources(self, what: str) -> dict:
        """Every entry of `datasets` or `base_models`, wherever it comes from."""
        here = getattr(self, what)
        return {**here.local, **here.remote, **getattr(self.published, what)}

    def recipe(self, name: str) -> Recipe:
        if name not in self.recipes:
            raise InputError(f"recipe {name!r} is not known; known recipes: {', '.join(sorted(self.recipes))}")
        return self.recipes[name]

    def targets(self, names: Iterable[str]) -> list[str]:
        """The last stages of these recipes: their evaluations, and those of the models they are compared with."""
        names = list(names)
        return [f"evaluate@{n}" for n in names] + [
            f"reference@{key}" for key, reference in self.references.items() if reference.recipe in names]


def flatten(values: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 1}} -> {"train.epochs": 1}."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def known_recipes() -> list[str]:
    """The recipe files; the directory is the registry."""
    return sorted(p.stem for p in RECIPES.glob("*.py") if p.stem != "__init__")


def read(path: Path = PARAMS) -> dict:
    """The YAML of params.yaml as plain values, read by the parser that DVC uses (1e-6 is a number)."""
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is not here; run this in the project's folder") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte {error.object[error.start]:#04x} is not UTF-8; "
                         "save the file as UTF-8") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; it must be a file of keys and values") from None
    except (YAMLError, ValueError) as error:    # ValueError: !!int of what is none, a date that no calendar has
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold keys and values, not {type(values).__name__}")
    return values


def load(path: Path = PARAMS) -> Project:
    """The whole of params.yaml, validated: unknown keys, wrong types and bad values are refused at once."""
    values = read(path)
    entries = values.get("recipes")
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{path}: recipes must name at least one recipe; known: {', '.join(known_recipes())}")
    recipes = {}
    for name, entry in entries.items():
        if name not in known_recipes():
            raise InputError(f"{path}: recipes.{name} has no steps/recipes/{name}.py; "
                             f"known recipes: {', '.join(known_recipes())}")
        module = importlib.import_module(f"steps.recipes.{name}")
        recipes[name] = validate(module.Params, entry, f"recipes.{name}.", path)
    return validate(Project, {**values, "recipes": recipes}, "", path)
