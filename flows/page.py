"""What a run did -> Markdown for its page on the Prefect server: stages, scores, verdicts, links to MLflow."""

import os
from collections.abc import Mapping

from flows import promotion
from steps import params, register, registry, scores, tracking
from steps.schema import InputError

STAGES = "| stage | |"      # the head of the table with which the page ends


def page(stages: Mapping[str, str], versions: Mapping[str, int]) -> str:
    """`stages` says what became of each stage; `versions` names the version of each recipe that came so far."""
    lines = [STAGES, "|---|---|", *(f"| `{name}` | {outcome} |" for name, outcome in stages.items()), ""]
    return above(versions) + "\n".join(lines)


def again(text: str, versions: Mapping[str, int]) -> str:
    """A page with its versions as they now are; what it says of the stages stays."""
    found = tracking.client()
    return above({recipe: number for recipe, number in versions.items() if registry.find(found, recipe, str(number))}
                 ) + "".join(text.partition(STAGES)[1:])


def above(versions: Mapping[str, int]) -> str:
    return "".join("\n".join(version(recipe, number)) + "\n\n" for recipe, number in versions.items())


def lies_here(recipe: str, number: int) -> bool:
    """Whether the version's scores lie in the workspace, and not those of a later one."""
    try:
        there = register.registered(recipe)
    except InputError:
        return False
    return there is not None and there.number == number


def version(recipe: str, number: int) -> list[str]:
    """The version with its scores and the verdict on it."""
    found, project = tracking.client(), params.load()
    held = registry.read_version(found, recipe, number)
    settings = project.recipe(recipe)
    tables = scores.tables(recipe, settings, register.folders(recipe)["test"], register.references(
        recipe, project)) if lies_here(recipe, number) else []
    return [f"## {link(f'{recipe}@{number}', f'models/{recipe}/versions/{number}')}", "",
            f"aliases: {', '.join(held.aliases) or 'none'}; run "
            f"{link(held.run_id, f'experiments/{tracking.experiment(found, recipe)}/runs/{held.run_id}')}", "",
            *(line for table in tables for line in scores.markdown(table, settings.evaluate.confidence)),
            "```text", promotion.text(recipe, number), "```"]


def link(text: str, path: str) -> str:
    """A link to MLflow's page, where the store is a server: a browser may call it by another address than we."""
    if not tracking.uri().startswith("http"):
        return text
    uri = (os.environ.get("EVERGREEN_MLFLOW_PAGE") or tracking.without_password(tracking.uri())).rstrip("/")
    return f"[{text}]({uri}/#/{path})"
