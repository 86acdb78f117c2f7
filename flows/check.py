"""A recipe's data -> a page that says what is in it, what was left out of it and what would stop a run."""

import contextlib
import io
import shutil
from collections.abc import Iterable
from pathlib import Path

from flows import graph, preflight
from steps import contract, download, params, prepare, reading, recipes
from steps.contract import Findings
from steps.schema import InputError

PLACE = Path(".evergreen/check")
PAGE = "report.txt"


def check(name: str) -> tuple[Findings, Path]:
    """What `prepare` finds in the recipe's data as it is now, and the folder with the lists of it; nothing else stays.

    Local data sets are read where they lie, others from data/, and what is not there yet is fetched for the moment.
    """
    project = params.load()
    project.recipe(name)
    folder, work = PLACE / name, PLACE / f".{name}"
    for old in (folder, work):
        shutil.rmtree(old, ignore_errors=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):     # the steps' own lines
            found = _look(name, project, work)
        found.keep_lists(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    (folder / PAGE).write_text(page(name, found, folder) + "\n", encoding="utf-8")
    return found, folder


def _look(name: str, project: params.Project, work: Path) -> Findings:
    settings = project.recipe(name)
    paths = (settings.dataset, settings.suite)
    for path in paths:
        if entry := preflight.local(path, project):
            dataset = Path(path).name
            download.check_sha256(dataset, entry, download.local_files(dataset, entry)[0])
    files = [preflight.files(path, project) or reading.splits(_fetched("dataset", path, project, work))
             for path in paths]
    base_model = preflight.model_folder(settings.base_model, project) or _fetched(
        "model", preflight.first_model(settings.base_model, project), project, work)
    found = prepare.fill(recipes.get(name), settings.model_copy(update={"base_model": str(base_model)}),
                         work / "prepared", *files)
    found.stops += preflight.licences(settings, project)
    found.notes += [f"{stage} would run anew, and this is of before" for stage in _stale(paths, project)]
    return found


def _stale(paths: Iterable[str], project: params.Project) -> list[str]:
    """The stages that made what was read of data/ and would make it anew; none while a run is at work on it."""
    made = {stage for path in paths if Path(path).exists() for stage in preflight.makers(path, project)}
    with contextlib.suppress(InputError):
        return graph.stale(sorted(made)) if any(not stage.startswith("import_") for stage in made) else []
    return []


def _fetched(what: str, path: str, project: params.Project, work: Path) -> Path:
    """A source that is not here, fetched into the folder `work`."""
    name, folder = Path(path).name, work / path
    if path.startswith("data/taught/"):
        raise InputError(f"{path} is not there yet; make it with: dvc repro teach@{name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    download.download(name, project.sources("datasets" if what == "dataset" else "base_models")[name], what, folder)
    return folder


def page(name: str, found: Findings, folder: Path) -> str:
    """The findings as a page of text."""
    report = found.report()
    lines = [f"{name}: what its data holds", "",
             f"  {'split':<24}{'rows read':>10}{'bad':>7}{'kept':>9}{'cut':>8}{'unknown tokens':>16}"]
    for split, counts in report["splits"].items():
        kept = "-" if "rows" not in counts else str(counts["rows"])
        cut, unknown = (f"{counts[part] / max(1, counts[whole]):.1%}" if whole in counts else "-"
                        for part, whole in (("truncated", "texts"), ("unknown", "tokens")))
        bad = sum(counts["quarantined"].values())
        lines.append(f"  {split:<24}{counts['read'] or '-':>10}{bad:>7}{kept:>9}{cut:>8}{unknown:>16}")
    for split, counts in report["splits"].items():
        for rule, count in counts["quarantined"].items():
            lines.append(f"\n  {split}: {count} rows quarantined: {rule}")
        lines += [f"    {problem}" for problem in found.problems.get(split, [])[:5]]
    for pair, counts in report["overlaps"].items():
        one, other = pair.split("/", 1)
        if counts["distinct"]:
            drop = f"; {counts['dropped']} rows dropped from {one}" if "dropped" in counts else ""
            letter = f" ({counts['letter']} letter for letter)" if "letter" in counts else ""
            lines += [f"\n  {counts['distinct']} examples of {one} stand in {other} too{letter}{drop}",
                      *(f"    {text}" for text in counts["examples"])]
        if counts.get("near"):
            done = "dropped" if counts["near_dropped"] else "kept; contract.near_duplicates: drop leaves them out"
            lines += [f"\n  {counts['near']} rows of {one} are nearly alike with {other}, {done}",
                      *(f"    {alike:.2f}  {ours}\n          {theirs}"
                        for ours, theirs, alike in counts["near_examples"])]
    for split, counts in report["repeats"].items():
        if counts["repeated"]:
            lines += [f"\n  {counts['repeated']} examples stand in {split} more than once ({counts['letter']} letter "
                      f"for letter), {counts['conflicting']} of them with different labels",
                      *(f"    {text}" for text in counts["examples"])]
    lines += [f"\n  note: {note}" for note in found.notes]
    lists = [str(folder / listed) for listed in contract.LISTS if (folder / listed).exists()]
    lines += ["", f"  whole lists: {', '.join(lists)}"] if lists else []
    lines += ["", f"  this page: {folder / PAGE}", ""]
    lines += (["a run would stop:", *(f"  {stop}" for stop in found.stops)] if found.stops else
              [f"nothing here stops a run; train with: evergreen run {name}"])
    return "\n".join(lines)
