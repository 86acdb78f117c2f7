"""A registered version -> its descent: parents, data, parameters, code, environment, and who put it in charge on what.

The same facts are text for a terminal and the end of the model card (register.py) that stands on the version.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from steps import journal, provenance, registry, tracking, verdicts

PACKAGES = ("torch", "transformers", "sentence-transformers", "numpy")


def explain(name: str) -> list[str]:
    """'sts@champion' -> the lines that say where it comes from, its parents' below its own."""
    found = tracking.client()
    recipe, number = registry.pick(found, name)
    lines = []
    for generation, (who, tags, run_id) in enumerate(descent(found, recipe, number)):
        title = who if generation == 0 else f"parent {who}"
        lines += ["", title] if generation else [title]
        if not tags:
            lines.append("  is not registered; its own lineage is not known")
            continue
        recipe, _, version = who.partition("@")
        rows = [*decisions(found, recipe, int(version)), *score(tags), *made_of(tags), *setting(found, run_id)]
        width = max(len(label) for label, _ in rows)
        lines += [f"  {label:{width}}  {value}" for label, value in rows]
    return lines


def descent(found, recipe: str, number: int) -> Iterator[tuple[str, Mapping[str, str], str]]:
    """(name, tags, run) of the version, its parent, the parent's parent ...; no tags where one is not registered."""
    seen = set()
    name = f"{recipe}@{number}"
    while name and name not in seen:
        seen.add(name)
        recipe, _, which = name.partition("@")
        if not which.isdigit() or int(which) not in registry.numbers_if_any(found, recipe):
            yield name, {}, ""
            return
        version = found.get_model_version(recipe, which)
        yield name, version.tags, version.run_id
        name = version.tags.get("parent", "")


def decisions(found, recipe: str, number: int) -> list[tuple[str, str]]:
    """What was decided on the version: when, by whom, why."""
    log = journal.read(found, recipe)
    rows = [("decision", f"{e.verdict} {e.at:%Y-%m-%d %H:%M:%SZ} by {e.who}: {e.why or 'no reason given'} "
                         f"({journal.source(e)})")
            for e in log.done() if e.version == number]
    aliases = [a for a, held in registry.model(found, recipe)[0].items() if held == number]
    holds = ("holds", f"the alias{'es' if len(aliases) > 1 else ''} {', '.join(sorted(aliases))}")
    rows = ([holds] if aliases else []) + (rows or [("decision", "none yet")])
    return rows + [("history", f"not as it was written: {problem}") for problem in (
        *log.problems, *verdicts.problems(found, log))]


def score(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """The deciding score as it was measured at registration, with the digest of the test rows."""
    metric = next((key.removeprefix("test_").removesuffix("_low") for key in tags if key.endswith("_low")), None)
    if metric is None:
        return []
    value, low, high = (f"{float(tags[f'test_{metric}{end}']):.4f}" for end in ("", "_low", "_high"))
    return [("score", f"{metric} {value} ({low} to {high}) on test rows {tags['test_sha256']}")]


def made_of(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Data, base model, code and digests, from the version's tags."""
    def get(key: str) -> str:
        return tags.get(key, "not known")

    parent = f", which is {tags['parent']}" if "parent" in tags else ""
    changes = ", with changes that were not committed" if get("git_commit").endswith("+changes") else ""
    return [
        ("data set", f"{get('dataset')}, revision {get('dataset_revision')}, licence {get('dataset_licence')}, "
                     f"sha256 {get('dataset_sha256')}"),
        *([("teacher", tags["teacher"])] if "teacher" in tags else []),
        ("base model", f"{get('base_model')}{parent}, revision {get('base_model_revision')}, licence "
                       f"{get('base_model_licence')}, weights sha256 {get('base_model_sha256')}"),
        ("code", f"commit {get('git_commit').removesuffix('+changes')}{changes}"),
        ("weights", f"sha256 {get('weights_sha256')}"),
    ]


def setting(found, run_id: str) -> list[tuple[str, str]]:
    """Parameters, environment and hardware of the version's run."""
    parameters, tags = tracking.facts(found, run_id)
    locks = [path for lock in provenance.LOCKS if (path := tracking.kept(found, run_id, f"evaluation/{lock}"))]
    return [
        ("environment", f"{packages(locks)}; sha256 {tags.get('environment_sha256', 'not known')}"),
        ("hardware", f"{tags.get('device', 'not known')}, {tags.get('precision', 'not known')}, "
                     f"{parameters.get('threads', 'not known')} threads"),
        ("parameters", ", ".join(f"{key} {value}" for key, value in sorted(parameters.items())) or "not known"),
        ("run", run_id or "none"),
    ]


def packages(locks: Sequence[Path]) -> str:
    """'torch 2.13.0, ...', the pins that most decide what comes out."""
    pins = "\n".join(lock.read_text(encoding="utf-8") for lock in locks)
    versions = [f"{p} {m[1]}" for p in PACKAGES if (m := re.search(rf"^{p}==([^\s\\]+)", pins, re.MULTILINE))]
    return ", ".join(versions) or "not kept"


def parents_card(found, tags: Mapping[str, str]) -> list[str]:
    """The parents' part of a model card, Markdown; nothing for a model without registered parents."""
    recipe, _, which = tags.get("parent", "").partition("@")
    if not recipe:
        return []
    lines = ["## Descent", ""]
    for who, found_tags, _ in descent(found, recipe, int(which) if which else 0):
        rows = made_of(found_tags) if found_tags else [("lineage", "not registered")]
        lines += [f"- parent {who}", *(f"  - {label}: {value}" for label, value in rows)]
    return [*lines, ""]
