"""Trained models -> versions of MLflow's registry with verified files, and back."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from steps import model_files, provenance, tracking
from steps.schema import InputError

ALIAS = "challenger"
CHAMPION = "champion"
PREFERRED = (CHAMPION, ALIAS)       # what a bare recipe name means
IN_CHARGE = "in_charge"             # a tag of a registered model that had a champion: the history's newest


@dataclass(frozen=True)
class Version:
    """One registered version: its number, run and aliases, and whether this call made it."""

    recipe: str
    number: int
    run_id: str
    aliases: list[str]
    created: bool = False


def version_of(found, recipe: str, model_sha256: str, evaluation_sha256: str) -> Version | None:
    """The registered version with this model and this evaluation."""
    for version in found.search_model_versions(f"name = '{recipe}' and tags.model_sha256 = '{model_sha256}'"):
        if version.tags.get("evaluation_sha256") == evaluation_sha256:
            return read_version(found, recipe, version.version)
    return None


def version_with_weights(found, recipe: str, weights_sha256: str) -> str:
    """'nli@2', the newest version of these weights, or 'nli' where none is registered."""
    versions = found.search_model_versions(f"name = '{recipe}' and tags.weights_sha256 = '{weights_sha256}'")
    return f"{recipe}@{max(int(v.version) for v in versions)}" if versions else recipe


def model(found, recipe: str) -> tuple[dict[str, int], dict[str, str]]:
    """Aliases and tags of the registered model; both empty where nothing is registered yet."""
    with _absent_is_fine():
        entity = found.get_registered_model(recipe)
        return {alias: int(number) for alias, number in entity.aliases.items()}, dict(entity.tags)
    return {}, {}


def tag_model(found, recipe: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        with _absent_is_fine():     # the model itself was deleted
            found.set_registered_model_tag(recipe, key, value)


@contextmanager
def _absent_is_fine() -> Iterator[None]:
    """Something that is not there, or is there no more when a request is sent again whose answer was lost, is no error.

    Anything else is one: a store that does not answer is no store without a champion.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def champion(found, recipe: str) -> tuple[Version, Mapping[str, str]] | None:
    """The version in charge and its tags."""
    number = model(found, recipe)[0].get(CHAMPION)
    if number is None:
        return None
    version = found.get_model_version(recipe, str(number))
    return read_version(found, recipe, number), version.tags


def tagged(found, recipe: str, tag: str, beginning: str) -> list[int]:
    """The versions with a tag that begins so."""
    return sorted(int(v.version) for v in found.search_model_versions(
        f"name = '{recipe}' and tags.{tag} LIKE '{beginning}%'"))


def numbers_if_any(found, recipe: str) -> list[int]:
    """The versions that are there, in their order."""
    known, token = [], None
    while token != "":
        page = found.search_model_versions(f"name = '{recipe}'", page_token=token)
        known, token = known + [int(v.version) for v in page], page.token or ""
    return sorted(known)


def numbers(found, recipe: str) -> list[int]:
    """The same. Raises InputError where there is none."""
    known = numbers_if_any(found, recipe)
    if not known:
        others = ", ".join(m.name for m in found.search_registered_models()) or "none yet"
        raise InputError(f"no model {recipe!r} is registered; registered: {others}. Make one: evergreen run {recipe}")
    return known


def say(found, recipe: str, number: int, line: str) -> None:
    """Adds a line to the version's model card."""
    card = found.get_model_version(recipe, str(number)).description or ""
    found.update_model_version(recipe, str(number), f"{card.rstrip()}\n{line}\n")


def find(found, recipe: str, which: str) -> tuple[Version, Mapping[str, str]] | None:
    """A version, by number or alias, and its tags."""
    from mlflow.exceptions import MlflowException

    try:
        version = (found.get_model_version(recipe, which) if which.isdigit() else
                   found.get_model_version_by_alias(recipe, which))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):      # no such alias
            raise
        return None
    return read_version(found, recipe, version.version), version.tags


def artifact(found, version: Version, path: str, sha256: str | None) -> Path:
    """A file of the version's run. Raises InputError where it is not the one of that digest."""
    from mlflow.exceptions import MlflowException

    who = f"{version.recipe}@{version.number}"
    try:
        file = Path(found.download_artifacts(version.run_id, path, tracking.downloads()))
    except (MlflowException, OSError):
        raise InputError(f"{who}: its run has no {path}; register it again: evergreen run {version.recipe}") from None
    if provenance.sha256(file) != sha256:
        raise InputError(f"{who}: {path} of its run is not the one it was registered with; restore it from a backup")
    return file


def read_version(found, recipe: str, number: int | str, created: bool = False) -> Version:
    version = found.get_model_version(recipe, str(number))
    return Version(recipe, int(version.version), version.run_id, list(version.aliases), created)


def register(found, recipe: str, kind: str, run_id: str, folder: Path, example: list[str], tags: Mapping[str, str],
             card: str, may: Callable[[], object] = lambda: None) -> Version:
    """Logs the model in `folder` to its run and makes it a version with its tags in one act.

    `may` is called between the two, which can be minutes apart, and raises where it must not be made any more.
    The tag files_sha256 is over every stored file; whoever loads the version checks it. Raises InputError when there
    is no such model, its run has not finished, a file is a pickle, or the stored weights are not the evaluated ones.
    """
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} holds no model.safetensors; make it with: evergreen run {recipe}")
    model_files.refuse_pickle(folder)
    if (status := found.get_run(run_id).info.status) != "FINISHED":
        raise InputError(f"run {run_id} has not finished ({status}), so its model is not registered; "
                         f"wait for it, or train again: evergreen run {recipe}")
    import mlflow
    from mlflow.exceptions import MlflowException

    of_run = found.search_model_versions(f"name = '{recipe}' and run_id = '{run_id}'")
    tracking.discard_models(found, run_id, {v.source for v in of_run})
    with mlflow.start_run(run_id=run_id):
        try:
            logged = model_files.log(kind, folder.absolute(), example)
        except MlflowException:     # it refuses what is sent again because the answer was lost on the way
            tracking.discard_models(found, run_id, {v.source for v in of_run})
            logged = model_files.log(kind, folder.absolute(), example)
    stored = model_files.stored(logged.model_uri)
    weights = next(stored.rglob("model.safetensors"), None)
    if weights is None or provenance.sha256(weights) != tags["weights_sha256"]:
        raise InputError(f"the weights stored for run {run_id} are not those of {folder}; is the disk sound?")
    model_files.refuse_pickle(stored)
    may()
    with suppress(MlflowException):     # known already
        found.create_registered_model(recipe)
    version = found.create_model_version(
        recipe, logged.model_uri, run_id, tags={**tags, "files_sha256": model_files.digest(stored)},
        description=card, model_id=logged.model_id)
    made = [int(v.version) for v in found.search_model_versions(f"name = '{recipe}' and run_id = '{run_id}'")
            if v.source == version.source]
    for extra in sorted(made)[1:]:      # the answer to the first request was lost on the way, and it was sent again
        with _absent_is_fine():
            found.delete_model_version(recipe, str(extra))
    return read_version(found, recipe, min([*made, int(version.version)]), created=True)


def set_alias(found, recipe: str, number: int, alias: str = ALIAS) -> None:
    found.set_registered_model_alias(recipe, alias, str(number))


def pick(found, name: str) -> tuple[str, int]:
    """'sts', 'sts@3' or 'sts@champion' -> recipe and number. A bare name means the champion, else the challenger.

    Raises InputError when there is none. A bare name whose champion was deleted is refused too: the challenger has
    not been judged.
    """
    recipe, _, which = name.partition("@")
    aliases, tags = model(found, recipe)
    known = numbers(found, recipe)
    if not which and CHAMPION not in aliases and IN_CHARGE in tags:
        raise InputError(f"{recipe} has no champion any more: its version was deleted or its alias taken away, see: "
                         f"evergreen history {recipe}; put the one before it back: evergreen rollback {recipe}; "
                         f"or name a version: {recipe}@{known[-1]}")
    which = which or next((a for a in PREFERRED if a in aliases), "")
    number = int(which) if which.isdigit() else aliases.get(which)
    if number not in known:
        raise InputError(f"{recipe!r} has no version or alias {which!r}; versions: {known}, aliases: {aliases}")
    return recipe, number


def resolve(name: str) -> tuple[Version, Path]:
    """'sts', 'sts@3' or 'sts@champion' -> the version and its folder of verified files."""
    found = tracking.client()
    recipe, number = pick(found, name)
    return read_version(found, recipe, number), verified(found, recipe, number)


def verified(found, recipe: str, number: int) -> Path:
    """The version's folder. Raises InputError when its files are not those that were registered, or hold a pickle."""
    from mlflow.exceptions import MlflowException

    remedy = "restore them from a backup or register the model again"
    registered = found.get_model_version(recipe, str(number)).tags.get("files_sha256")
    if registered is None:
        raise InputError(f"{recipe}@{number} has no digest of its files: it was not registered by Evergreen and is not "
                         f"used; register with: evergreen register {recipe}")
    try:
        folder = model_files.stored(f"models:/{recipe}/{number}")
        stored = model_files.digest(folder)
    except (MlflowException, OSError) as error:
        raise InputError(f"{recipe}@{number}: its stored files cannot be read ({error}); {remedy}") from None
    if stored != registered:
        raise InputError(f"{recipe}@{number}: the files in {folder} are not those that were registered; {remedy}")
    model_files.refuse_pickle(folder)
    return folder


def delete(found, recipe: str, number: int) -> None:
    """Deletes a version that holds no alias."""
    if holds := sorted(alias for alias, held in model(found, recipe)[0].items() if held == number):
        raise InputError(f"{recipe}@{number} is the {' and the '.join(holds)} and is not deleted; put another in its "
                         "place first")
    with _absent_is_fine():
        found.delete_model_version(recipe, str(number))
