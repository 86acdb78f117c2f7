"""Hub sources of params.yaml -> the present commits of their branches, written beside them or told as news."""

from collections.abc import Iterable
from pathlib import Path

from steps import params
from steps.schema import InputError

PLACES = ("datasets.remote", "base_models.remote", "published.datasets", "published.base_models")


def pin(names: list[str], path: Path = params.PARAMS) -> list[tuple[str, str, str | None, str]]:
    """Writes the present commit of each source's branch as its revision; without names, of all that `follow` one.

    The branch is what the source follows, else what stands as its revision, else main. Returns (hub name, branch,
    revision before, commit) of each. Nothing is written unless all are found; the rest of the file stays as it is,
    comments too.
    """
    from ruamel.yaml import YAML

    params.read(path)       # says what is wrong with the file, if it is
    file = YAML()
    file.preserve_quotes, file.width = True, 4096
    file.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    values = file.load(path.read_text(encoding="utf-8"))
    known = {name: (place, entry) for place in reversed(PLACES) for name, entry in _below(values, place).items()}
    on_hub = sorted(name for name, (_, entry) in known.items() if entry.get("hub"))
    if not names:
        names = [name for name in on_hub if known[name][1].get("follow")]
        if not names:
            raise InputError(f"{path}: no source follows a branch; name one of {', '.join(on_hub) or 'none'}, or give "
                             "it `follow: main`")
    found = []
    for name in names:
        if name not in known:
            raise InputError(f"{path} has no hub source {name!r}; those it has: {', '.join(on_hub) or 'none'}")
        place, entry = known[name]
        if name not in on_hub:
            raise InputError(f"{path}: {place}.{name} names no hub repository; only those have revisions to pin")
        before = entry.get("revision")
        branch = entry.get("follow") or before or "main"
        commit = head("datasets" in place, entry["hub"], branch)
        if before is None:
            entry.insert(list(entry).index("hub") + 1, "revision", commit)
        entry["revision"] = commit
        found.append((entry["hub"], branch, before, commit))
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as out:
        file.dump(values, out)
    partial.replace(path)
    return found


def news(stages: Iterable[str]) -> tuple[list[str], list[str]]:
    """A line for each source of these stages whose branch has another commit than the pinned one, or cannot be read."""
    project, newer, unknown = params.load(), [], []
    for stage in stages:
        step, _, name = stage.partition("@")
        dataset = step.endswith("dataset")
        if not (dataset or step.endswith("model")):
            continue
        source = project.sources("datasets" if dataset else "base_models")[name]
        if not (branch := getattr(source, "follow", None)):
            continue
        try:
            commit = head(dataset, source.hub, branch)
        except InputError as error:
            unknown.append(str(error))
            continue
        if commit != source.revision:
            newer.append(f"{name}: {source.hub} at {branch!r} is {commit}, pinned is {source.revision}; to train on "
                         f"it: evergreen pin {name}, and commit params.yaml")
    return newer, unknown


def head(dataset: bool, hub_name: str, branch: str) -> str:
    """The commit of a branch or tag, by one request. Raises InputError where it cannot be had."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        return hub.HfApi().repo_info(hub_name, revision=branch, repo_type="dataset" if dataset else "model").sha
    except (errors.HTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled, OSError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{hub_name} at {branch!r} cannot be looked up: {reason}") from None


def _below(values: dict, place: str) -> dict:
    for key in place.split("."):
        values = values.get(key) or {}
    return values
