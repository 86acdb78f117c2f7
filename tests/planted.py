"""Models whose quality is planted, a project with three of them, and files and tags that are changed for a while."""

import contextlib
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from steps import batching, command, embedding, evaluate, params, register, registry, tracking
from steps.recipes import sts
from tests.project import Project

TEST = Path("data/prepared/sts/test.arrow")
MODEL = Path("models/sts")
EVALUATION = Path("evaluation/sts/test")
GOOD, BAD, TWIN = 1, 2, 3       # the versions of a shelf


def make_shelf(finished: Project, folder: Path) -> Project:
    """A project with three versions: the trained model, a spoilt one, and the trained one under another name."""
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns(".evergreen"))
    place = Project(folder, finished.environment)
    place.change(lambda values: values["recipes"]["sts"]["gate"].update(
        {"margin": -0.001, "floor": 0.0, "min_rows": 10, "slices": {}, "resamples": 500,
         "latency": {"texts": 2, "rounds": 2, "ratio": 50.0, "milliseconds": None}}))
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (command.QUIET | command.OFFLINE | {"MLFLOW_TRACKING_URI": ""}).items():
            patch.setenv(key, value)
        patch.chdir(folder)
        project = params.load()
        plant(project)

        def version() -> int:
            evaluate.evaluate("sts", project.recipe("sts"), project, TEST.parent, MODEL, EVALUATION)
            return register.register("sts").number

        assert version() == GOOD
        shutil.copytree(MODEL, "kept")
        spoil(MODEL)
        assert version() == BAD
        shutil.rmtree(MODEL)
        shutil.move("kept", MODEL)
        evaluate.evaluate("sts", project.recipe("sts"), project, TEST.parent, MODEL, EVALUATION)
        with open(EVALUATION / "metrics.json", "a", encoding="utf-8") as file:
            file.write(" ")
        assert register.register("sts").number == TWIN
    return place


@contextlib.contextmanager
def lent(shelf: Project):
    """A client of its store, in which nothing is or was in charge and no verdict is known; the rules as they were."""
    before = (shelf / "params.yaml").read_bytes()
    yield (found := tracking.client())
    (shelf / "params.yaml").write_bytes(before)
    with contextlib.suppress(Exception):
        found.delete_registered_model_alias("sts", "champion")
    if log := found.get_experiment_by_name("sts/history"):
        found.rename_experiment(log.experiment_id, f"another/history/{log.experiment_id}")
    for tag in found.get_registered_model("sts").tags:
        found.delete_registered_model_tag("sts", tag)
    for number in (GOOD, BAD, TWIN):
        tags = found.get_model_version("sts", str(number)).tags
        for tag in tags:
            if tag.startswith("verdict"):
                found.delete_model_version_tag("sts", str(number), tag)
        shutil.rmtree(verdict_files(found, number), ignore_errors=True)


def verdict_files(found, number: int) -> Path:
    run = found.get_run(found.get_model_version("sts", str(number)).run_id)
    return Path(run.info.artifact_uri.removeprefix("file://")) / "verdicts"


def in_charge(found) -> int | None:
    champion = registry.champion(found, "sts")
    return champion and champion[0].number



def plant(project: params.Project) -> None:
    """Gives the test rows as labels what the trained model says of them: it is right, every other model is worse."""
    settings = project.recipe("sts")
    texts = batching.texts(TEST, sts.TASK.TEXTS)
    said = sts.TASK.prediction(embedding.outputs(embedding.load(MODEL, settings), list(texts.values()), 64), None)
    table = pa.ipc.open_stream(TEST.read_bytes()).read_all()
    place = table.column_names.index("label")
    table = table.set_column(place, "label", pa.array((said + 1) / 2, pa.float32()))
    with pa.OSFile(str(TEST), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def spoil(folder: Path) -> None:
    """Adds noise to the word vectors."""
    import torch

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name] += torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@contextlib.contextmanager
def changed(path: Path):
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        yield
    finally:
        path.write_bytes(before)


@contextlib.contextmanager
def tagged(found, number: int, tag: str, value: str | None):
    before = found.get_model_version("sts", str(number)).tags[tag]
    found.delete_model_version_tag("sts", str(number), tag)
    if value is not None:
        found.set_model_version_tag("sts", str(number), tag, value)
    try:
        yield
    finally:
        found.set_model_version_tag("sts", str(number), tag, before)
