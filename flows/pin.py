"""A name in params.yaml -> the hub's present commit hash, written beside it."""

from pathlib import Path

from steps import params
from steps.schema import InputError

PLACES = ("datasets.remote", "base_models.remote", "published.datasets", "published.base_models")


def pin(name: str, path: Path = params.PARAMS) -> tuple[str, str, str]:
    """Resolves the branch or tag that stands as revision (or the default branch) and writes the hash.

    Returns hub name, what stood there and the hash. The rest of the file stays as it is, comments too.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors
    from ruamel.yaml import YAML

    params.read(path)       # says what is wrong with the file, if it is
    file = YAML()
    file.preserve_quotes, file.width = True, 4096
    file.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    values = file.load(path.read_text(encoding="utf-8"))
    found = {place: entries[name] for place in PLACES if name in (entries := _below(values, place))}
    if not found:
        known = sorted(n for place in PLACES for n, e in _below(values, place).items() if "hub" in e)
        raise InputError(f"{path} has no hub source {name!r}; those it has: {', '.join(known) or 'none'}")
    place, entry = next(iter(found.items()))
    if not entry.get("hub"):
        raise InputError(f"{path}: {place}.{name} names no hub repository; only those have revisions to pin")
    before = entry.get("revision") or "main"
    kind = "dataset" if "datasets" in place else "model"
    try:
        commit = hub.HfApi().repo_info(entry["hub"], revision=before, repo_type=kind).sha
    except (errors.HTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled, OSError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{entry['hub']} at {before!r} cannot be looked up: {reason}") from None
    if "revision" in entry:
        entry["revision"] = commit
    else:
        entry.insert(list(entry).index("hub") + 1, "revision", commit)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as out:
        file.dump(values, out)
    partial.replace(path)
    return entry["hub"], before, commit


def _below(values: dict, place: str) -> dict:
    for key in place.split("."):
        values = values.get(key) or {}
    return values
