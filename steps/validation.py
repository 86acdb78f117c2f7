"""A value and its strict type -> the value as that type, or one error that names every mistake and its remedy."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from steps.schema import InputError

LONG = 100          # characters of a section of params.yaml above which an error does not repeat it


def validate(model: type[BaseModel], value: Any, prefix: str, path: Path | None = None):
    """The value as the model has it. Raises InputError with a line for each problem: file, key, value and rule."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines, problems = [], error.errors()
        meant = _meant(problems)
        for problem in problems:
            key = (prefix + ".".join(map(str, problem["loc"]))).rstrip(".")
            if problem["type"] == "missing":
                if problem["loc"] not in meant.values():
                    lines.append(f"{key} is missing")
            elif problem["type"] == "extra_forbidden":
                known = meant.get(problem["loc"])
                lines.append(f"{key} is not a known key; " + (f"did you mean {known[-1]}?" if known else
                                                              "remove it or correct its spelling"))
            elif isinstance(cause := problem.get("ctx", {}).get("error"), InputError):
                lines += str(cause).splitlines()
            else:
                rule = problem["msg"].removeprefix("Value error, ")
                found = f" = {problem['input']!r}"
                whole = isinstance(problem["input"], dict) and len(found) > LONG
                lines.append(f"{key}{'' if whole else found}: {rule}" if key else rule)
        raise InputError("\n".join(f"{path}: {line}" if path else line for line in lines)) from None


def _meant(problems: list[dict]) -> dict[tuple, tuple]:
    """The places of unknown keys, each with that of the missing key beside it whose name is nearly the same."""
    missing = [p["loc"] for p in problems if p["type"] == "missing"]
    found = {}
    for loc in (p["loc"] for p in problems if p["type"] == "extra_forbidden"):
        beside = [m[-1] for m in missing if m[:-1] == loc[:-1] and m not in found.values()]
        if near := difflib.get_close_matches(str(loc[-1]), beside, 1):
            found[loc] = (*loc[:-1], near[0])
    return found
