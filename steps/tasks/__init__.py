"""One file per task, a way to judge a model on held-out examples; the directory is the registry.

A task file has:
    Entry                       how a recipe's `tasks` in params.yaml names one, a strict pydantic model
    TEXTS                       the text columns
    example(row, entry)         one row of text that keeps the rules (steps/contract.py) -> {column: value}, `label`
                                where there is one
    scores(outputs, labels)     every metric; outputs are the vectors of each column, or the logits
    prediction(outputs, labels) [n] what the model says of each example
    STATISTICS                  {metric: statistic(labels, predictions)}, those that can have an interval
    METRIC                      the one that decides where nothing else is said
"""

import importlib
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")


def get(name: str) -> ModuleType:
    return importlib.import_module(f"steps.tasks.{name}")
