"""Runs and their curves -> MLflow, and nothing where it is not installed; with registry.py the only import of it."""

import importlib.util
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from steps import command, params, provenance
from steps.schema import InputError, Recipe

STORE = Path(".evergreen")
PROCESS = "evergreen.process"       # the tag by which a run whose process was killed is told from one that goes on


def available() -> bool:
    """False where MLflow is not installed or EVERGREEN_TRACKING=none switches it off."""
    return os.environ.get("EVERGREEN_TRACKING") != "none" and importlib.util.find_spec("mlflow") is not None


def uri() -> str:
    """The store in charge: MLFLOW_TRACKING_URI, else an SQLite file inside the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE.absolute()}/mlflow.db"


def without_password(text: str) -> str:
    """The text, whose addresses say no more who may come in."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def client():
    """A client of the store, whose schema is made once, under a lock, by whoever comes first."""
    if not available():
        raise InputError("the registry needs MLflow, which is not installed or is switched off; make setup")
    if not params.PARAMS.exists():
        raise InputError(f"{params.PARAMS} is not here; run this in the project's folder")
    command.quiet(offline=False)
    import logging

    import mlflow
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    STORE.mkdir(exist_ok=True)
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri())
    with FileLock(STORE / "mlflow.lock"):
        try:
            found = mlflow.MlflowClient()
            found.search_experiments(max_results=1)
        except MlflowException as error:
            remedy = ("; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to whom it lets in"
                      if error.get_http_status_code() in (401, 403) else "")
            raise InputError(without_password(f"the MLflow store {uri()} cannot be used: {error}{remedy}")) from None
    return found


def experiment(found, recipe: str) -> str:
    """The id of the recipe's experiment, made on first use."""
    from mlflow.exceptions import MlflowException

    if known := found.get_experiment_by_name(recipe):
        return known.experiment_id
    artifacts = (STORE / "artifacts" / recipe).absolute().as_uri() if uri().startswith("sqlite:") else None
    try:
        return found.create_experiment(recipe, artifacts, {"mlflow.experimentKind": "custom_model_development"})
    except MlflowException:     # somebody else was first
        return found.get_experiment_by_name(recipe).experiment_id


class Run:
    """A run that is being trained; does nothing when there is no store."""

    def __init__(self, found=None, run_id: str | None = None):
        self.client, self.run_id = found, run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self.client:
            log_metrics(self.client, self.run_id, metrics, step)

    def finish(self, weights_sha256: str, table: str, tags: Mapping[str, str]) -> None:
        if self.client:
            self.client.log_text(self.run_id, table + "\n", "epochs.txt")
            for key, value in {**tags, "weights_sha256": weights_sha256}.items():
                self.client.set_tag(self.run_id, key, value)


def log_metrics(found, run_id: str, metrics: Mapping[str, float], step: int) -> None:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    found.log_batch(run_id, metrics=[Metric(k, float(v), now, step) for k, v in metrics.items()])


@contextmanager
def training_run(recipe: str, settings: Recipe, project: params.Project, summary: dict) -> Iterator[Run]:
    """Logs a training live: parameters, data set, curves, system metrics."""
    if not available():
        yield Run()
        return
    found = client()
    import mlflow

    close_lost_runs(found, recipe)
    mlflow.set_system_metrics_sampling_interval(2)
    with mlflow.start_run(run_id=new_run(found, recipe, recipe, {}), log_system_metrics=True) as run:
        run_id = run.info.run_id
        describe(found, run_id, settings, project, summary)
        yield Run(found, run_id)


def new_run(found, recipe: str, name: str, tags: Mapping[str, str]) -> str:
    """Makes one run, and one alone where the store's answer was lost on the way and the request sent again."""
    import uuid

    of = experiment(found, recipe)
    request = uuid.uuid4().hex
    tags = {**tags, PROCESS: command.identity(), "evergreen.request": request}
    run_id = found.create_run(of, tags=tags, run_name=name).info.run_id
    for run in found.search_runs([of], f"tags.`evergreen.request` = '{request}'"):
        if run.info.run_id != run_id:
            found.set_terminated(run.info.run_id, "KILLED")
            found.delete_run(run.info.run_id)
    return run_id


def close_lost_runs(found, recipe: str) -> None:
    """Ends the runs of this machine whose process is gone (a kill -9 leaves them RUNNING)."""
    for run in found.search_runs([experiment(found, recipe)], "attributes.status = 'RUNNING'"):
        if not command.ended(run.data.tags.get(PROCESS, ""), run.info.start_time / 1000):
            continue
        # what a training is tagged with at its end tells one that was killed later, in its registration
        trained = "weights_sha256" in run.data.tags
        found.set_terminated(run.info.run_id, "FINISHED" if trained else "KILLED")


def discard_models(found, run_id: str, used: Collection[str]) -> None:
    """Removes what the run has of models but those `used`: their registration was killed before they had a version."""
    of = found.get_run(run_id).info.experiment_id
    for left in found.search_logged_models([of], f"source_run_id = '{run_id}'"):
        if left.model_uri not in used:
            place = urlparse(left.artifact_location)
            if place.scheme == "file":      # a server's files are for its `mlflow gc`
                shutil.rmtree(Path(url2pathname(place.path)).parent, ignore_errors=True)
            found.delete_logged_model(left.model_id)        # last: killed before, the next registration finds it again


def describe(found, run_id: str, settings: Recipe, project: params.Project, summary: dict) -> None:
    """Parameters, the data set with its digest, and the code of a run."""
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag, Param, RunTag

    flat = {"seed": project.seed, "threads": project.threads} | params.flatten(settings.what_makes_it())
    source = summary["source"]
    tags = {
        "git_commit": provenance.git_commit(), **dataset_tags(source),
    } | {f"{split}_rows": str(s["rows"]) for split, s in summary["splits"].items()}
    found.log_batch(run_id, params=[Param(k, str(v)) for k, v in flat.items()],
                    tags=[RunTag(k, v) for k, v in tags.items()])

    where = source.get("url") or (f"https://huggingface.co/datasets/{source['hub']}" if "hub" in source
                                  else f"local:{source['name']}")
    dataset = MetaDataset(HTTPDatasetSource(where), name=source["name"], digest=tags["dataset_sha256"][:36])
    entity = dataset._to_mlflow_entity()
    rows = [InputTag(k, v) for k, v in tags.items() if k.endswith("_rows") or k.startswith("dataset_")]
    found.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training"), *rows])])


def dataset_tags(source: Mapping) -> dict[str, str]:
    """Which data set it was, as runs and versions name it."""
    return {
        "dataset": source["name"],
        "dataset_revision": source.get("revision") or source.get("url") or "local",
        "dataset_sha256": provenance.digest(source["sha256"]),
        "dataset_licence": source["licence"],
    }


def run_of(found, recipe: str, weights_sha256: str) -> str | None:
    """The id of the newest run that trained these weights; the tag is set when they are saved."""
    runs = found.search_runs([experiment(found, recipe)], f"tags.weights_sha256 = '{weights_sha256}'", max_results=1)
    return runs[0].info.run_id if runs else None


def facts(found, run_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """Parameters and tags of a run; both empty where it is gone."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return {}, {}
    try:
        data = found.get_run(run_id).data
    except MlflowException:
        return {}, {}
    return dict(data.params), dict(data.tags)


def kept(found, run_id: str, path: str) -> Path | None:
    """A file that was kept with a run, here; downloaded when the store is elsewhere. None where it is not there."""
    from mlflow.exceptions import MlflowException

    try:
        return Path(found.download_artifacts(run_id, path, downloads()))
    except (MlflowException, OSError):
        return None


def downloads() -> str:
    """A folder for what MLflow downloads, which itself would leave it for ever: from a store on this disk too."""
    return command.own_folder(STORE.absolute() / "downloads")


def append(found, recipe: str, name: str, tags: Mapping[str, str], at: float) -> str:
    """Adds an entry to the recipe's history in one act: a run with these tags. It is open until it is closed."""
    tags = {**tags, PROCESS: command.identity()}
    return found.create_run(experiment(found, f"{recipe}/history"), int(at * 1000), tags, name).info.run_id


def close(found, entry: str, done: bool) -> None:
    found.set_terminated(entry, "FINISHED" if done else "KILLED")


def entries(found, recipe: str) -> list[tuple[str, str, bool, dict[str, str]]]:
    """(id, open, done or void, deleted in MLflow, tags) of the recipe's history, in no order."""
    from mlflow.entities import ViewType

    known = found.get_experiment_by_name(f"{recipe}/history")
    states = {"RUNNING": "open", "FINISHED": "done"}
    result, token = [], None
    while known:
        page = found.search_runs([known.experiment_id], run_view_type=ViewType.ALL, page_token=token)
        result += [(run.info.run_id, states.get(run.info.status, "void"), run.info.lifecycle_stage == "deleted",
                    dict(run.data.tags)) for run in page]
        token = page.token
        if not token:
            break
    return result


def rebuilt_run(found, recipe: str, settings: Recipe, project: params.Project, summary: dict,
                weights_sha256: str, curves: list[tuple[int, dict[str, float]]]) -> str:
    """A run made from the tracked curves, for a model restored from a cache or trained where MLflow is absent."""
    run_id = new_run(found, recipe, f"{recipe}-restored", {"rebuilt": "from the tracked files; no timings"})
    describe(found, run_id, settings, project, summary)
    for step, metrics in curves:
        log_metrics(found, run_id, metrics, step)
    found.set_tag(run_id, "weights_sha256", weights_sha256)     # last: by it the run is found
    found.set_terminated(run_id, "FINISHED")
    return run_id


def publish(found, run_id: str, metrics: Mapping[str, float], files: list[Path], texts: Mapping[str, str],
            tags: Mapping[str, str]) -> None:
    """Adds the evaluation to the training's run: test metrics, plots, the files and digests it rests on."""
    from mlflow.entities import RunTag

    log_metrics(found, run_id, metrics, 0)
    for file in files:
        found.log_artifact(run_id, str(file), "plots" if file.suffix == ".png" else "evaluation")
    for name, text in texts.items():
        found.log_text(run_id, text, name)
    found.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])


def parent_run(recipe: str, seeds: list[int], summary: Mapping[str, float], children: Mapping[int, str],
               scores: Mapping[int, Mapping[str, float]]) -> str:
    """The run that holds mean and spread over seeds, with each seed's run nested in it."""
    found = client()
    name = f"{recipe}, seeds {seeds[0]} to {seeds[-1]}"
    tags = {"mlflow.runName": name, "seeds": ", ".join(map(str, seeds))}
    run = found.create_run(experiment(found, recipe), tags=tags, run_name=name)
    log_metrics(found, run.info.run_id, summary, 0)
    for seed, child in children.items():
        log_metrics(found, child, scores[seed], 0)
        found.set_tag(child, "mlflow.parentRunId", run.info.run_id)
        found.set_tag(child, "git_commit", provenance.git_commit())     # a copy of the project has none
    found.set_terminated(run.info.run_id, "FINISHED")
    return run.info.run_id
