"""One file per recipe; the directory is the registry.

A recipe file has:
    Params                      its entry in params.yaml, a strict pydantic model
    TASK                        the task that dev and test are (steps/tasks)
    METRIC                      the score of that task that decides, for its intervals on test
where its kind is `embedding`:
    loss(model, train, rows)    the training loss on (features, labels)
and what it needs of:
    UNLABELLED = True           train is plain text, cut into sentences; dev and test come from the first of `tasks`
    texts(prepare)              the text columns of train, in the order its loss expects, where not the task's
    examples(row, prepare)      a row of train's text -> rows {column: value}, `label` where there is one, where that
                                is not the task's own `example`
    LABELS                      what the labels of train are, where `prepare.labels` does not say
    WORDS = True                prepare stores where the words of each text begin
    columns(prepare)            the columns of train's files, where they are not `prepare.columns`
    held_out(row, prepare)      a row of dev or test, where it is not the task's own `example`
    collator(tokenizer, settings, seed)     rows of a batch -> tensors, other than batching.Collator
    counted(batch)              how many things the loss of a batch is a mean over, where those are not its rows
    in_parts(train, parts)      the settings of the same loss with less in memory, where a batch's rows belong together
    check(base_model)           InputError where the base model cannot be trained so
"""

import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType

from steps import sentences


def get(name: str) -> ModuleType:
    return importlib.import_module(f"steps.recipes.{name}")


def unlabelled(recipe: ModuleType) -> bool:
    """Whether train is plain text."""
    return getattr(recipe, "UNLABELLED", False)


def texts(recipe: ModuleType, prepare) -> tuple[str, ...]:
    """The text columns of train, in the order the loss expects."""
    if hasattr(recipe, "texts"):
        return recipe.texts(prepare)
    return ("text",) if unlabelled(recipe) else recipe.TASK.TEXTS


def columns(recipe: ModuleType, prepare):
    """The names of the columns of train's files."""
    return recipe.columns(prepare) if hasattr(recipe, "columns") else prepare.columns


def labels(recipe: ModuleType, prepare) -> list[str]:
    """The names of train's classes; none where its rows have none."""
    classes = "label" in type(columns(recipe, prepare)).model_fields
    return list(getattr(prepare, "labels", getattr(recipe, "LABELS", ()))) if classes else []


def examples(recipe: ModuleType, row: Mapping, prepare) -> Iterable[dict]:
    """A row of train's text that keeps the rules -> rows {column: value}."""
    if hasattr(recipe, "examples"):
        return recipe.examples(row, prepare)
    if unlabelled(recipe):
        return sentences.examples(row, prepare)
    return [recipe.TASK.example(row, prepare)]
