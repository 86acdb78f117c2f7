"""Trained models -> versions of MLflow's registry with verified files, and back."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from steps import provenance, tracking
from steps.schema import InputError

ALIAS = "challenger"
PREFERRED = ("champion", ALIAS)     # what a bare recipe name means
MODEL = "model"                     # the artifact folder of a logged model


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


def champion(found, recipe: str) -> tuple[Version, Mapping[str, str]] | None:
    """The version in charge and its tags."""
    from mlflow.exceptions import MlflowException

    try:
        version = found.get_model_version_by_alias(recipe, PREFERRED[0])
    except MlflowException:
        return None
    return read_version(found, recipe, version.version), version.tags


def find(found, recipe: str, which: str) -> tuple[Version, Mapping[str, str]] | None:
    """A version, by number or alias, and its tags."""
    from mlflow.exceptions import MlflowException

    try:
        version = (found.get_model_version(recipe, which) if which.isdigit() else
                   found.get_model_version_by_alias(recipe, which))
    except MlflowException:
        return None
    return read_version(found, recipe, version.version), version.tags


def artifact(found, version: Version, path: str, sha256: str | None) -> Path:
    """A file of the version's run. Raises InputError where it is not the one of that digest."""
    from mlflow.exceptions import MlflowException

    who = f"{version.recipe}@{version.number}"
    try:
        file = Path(found.download_artifacts(version.run_id, path))
    except (MlflowException, OSError):
        raise InputError(f"{who}: its run has no {path}; register it again: evergreen run {version.recipe}") from None
    if provenance.sha256(file) != sha256:
        raise InputError(f"{who}: {path} of its run is not the one it was registered with; restore it from a backup")
    return file


def read_version(found, recipe: str, number: int | str, created: bool = False) -> Version:
    version = found.get_model_version(recipe, str(number))
    return Version(recipe, int(version.version), version.run_id, list(version.aliases), created)


@contextmanager
def registering() -> Iterator[None]:
    """One registration at a time on this store's machine."""
    from filelock import FileLock

    tracking.STORE.mkdir(exist_ok=True)
    with FileLock(tracking.STORE / "register.lock"):
        yield


def register(found, recipe: str, kind: str, run_id: str, folder: Path, example: list[str], tags: Mapping[str, str],
             card: str) -> Version:
    """Logs the model in `folder` to its run and makes it a version with its tags in one act.

    The tag files_sha256 is over every stored file; whoever loads the version checks it. Raises InputError when the
    stored weights are not the evaluated ones.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from transformers.utils import logging

    logging.disable_progress_bar()
    requirements = [f"{p}=={importlib.metadata.version(p).split('+')[0]}"
                    for p in ("sentence-transformers", "transformers", "torch")]
    log = {"embedding": _log_encoder, "classification": _log_classifier}[kind]
    with mlflow.start_run(run_id=run_id):
        logged = log(folder.absolute(), example, requirements)
    stored = stored_folder(logged.model_uri)
    weights = next(stored.rglob("model.safetensors"), None)
    if weights is None or provenance.sha256(weights) != tags["weights_sha256"]:
        raise InputError(f"the weights stored for run {run_id} are not those of {folder}; is the disk sound?")
    with suppress(MlflowException):     # known already
        found.create_registered_model(recipe)
    version = found.create_model_version(
        recipe, logged.model_uri, run_id, tags={**tags, "files_sha256": files_sha256(stored)},
        description=card, model_id=logged.model_id)
    return read_version(found, recipe, version.version, created=True)


def _log_encoder(folder: Path, example: list[str], requirements: list[str]):
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    vectors = TensorSpec(np.dtype("float32"), (-1, model.get_embedding_dimension()))
    signature = ModelSignature(Schema([ColSpec("string")]), Schema([vectors]))
    return mlflow.sentence_transformers.log_model(
        model, name=MODEL, signature=signature, input_example=example, pip_requirements=requirements)


def _log_classifier(folder: Path, example: list[str], requirements: list[str]):
    import logging

    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)    # it asks a hub for the card of a local folder
    parts = {"model": AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True),
             "tokenizer": AutoTokenizer.from_pretrained(folder, local_files_only=True)}
    signature = ModelSignature(Schema([ColSpec("string")]), Schema([ColSpec("string", "label"),
                                                                    ColSpec("double", "score")]))
    return mlflow.transformers.log_model(parts, name=MODEL, task="text-classification", signature=signature,
                                         input_example=example[:1], pip_requirements=requirements)


def stored_folder(model_uri: str) -> Path:
    """The local folder of a stored model as MLflow laid it out, downloaded when the store is elsewhere."""
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(model_uri))


def files_sha256(stored: Path) -> str:
    """One digest of the model's own files; those beside them are MLflow's, which adds to them."""
    return provenance.digest({p.relative_to(stored).as_posix(): provenance.sha256(p)
                              for p in stored.rglob("*") if p.is_file() and p.parent != stored})


def set_alias(found, recipe: str, number: int, alias: str = ALIAS) -> None:
    found.set_registered_model_alias(recipe, alias, str(number))


def resolve(name: str) -> tuple[Version, Path]:
    """'sts', 'sts@3' or 'sts@champion' -> the version and its folder of verified files.

    A bare name means the champion, else the challenger. Raises InputError when there is none, or when the files
    are not those that were registered.
    """
    from mlflow.exceptions import MlflowException

    recipe, _, which = name.partition("@")
    found = tracking.client()
    try:
        aliases = found.get_registered_model(recipe).aliases
    except MlflowException:
        known = ", ".join(m.name for m in found.search_registered_models()) or "none yet"
        raise InputError(f"no model {recipe!r} is registered; registered: {known}. "
                         f"Make one: evergreen run {recipe}") from None
    which = which or next((a for a in PREFERRED if a in aliases), "")
    number = which if which.isdigit() else aliases.get(which)
    try:
        version = found.get_model_version(recipe, str(number))
    except MlflowException:
        numbers = sorted(int(v.version) for v in found.search_model_versions(f"name = '{recipe}'"))
        raise InputError(f"{recipe!r} has no version or alias {which!r}; versions: {numbers}, "
                         f"aliases: {dict(aliases)}") from None
    try:
        folder = stored_folder(f"models:/{recipe}/{version.version}")
        stored = files_sha256(folder)
    except (MlflowException, OSError) as error:
        raise InputError(f"{recipe}@{version.version}: its stored files cannot be read ({error}); "
                         "restore them from a backup or register the model again") from None
    if stored != version.tags.get("files_sha256"):
        raise InputError(f"{recipe}@{version.version}: the files in {folder} are not those that were registered; "
                         "restore them from a backup or register the model again")
    return read_version(found, recipe, version.version), folder
