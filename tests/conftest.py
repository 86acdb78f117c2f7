"""A tiny BERT and a tiny project, made offline; every driver in these tests is the real one."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import cli
from steps import command, params, recipes, tracking
from steps.contract import Findings
from steps.schema import Contract
from tests.order import pytest_collection_modifyitems  # noqa: F401
from tests.project import ROOT, Project, make_project, make_tiny_model, new_user, write_rows


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=1, help="kill -9 of each recipe's training (make reliability: 20)")


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    return new_user(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-bert")


CANARY = "hf_canaryThatMustStandNowhere"      # what the variables of SECRETS held when `finished` was made
SECRETS = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "EVERGREEN_SECRET")
LENIENT = {"min_rows": 1, "unknown": 1.0, "truncated": 1.0, "leaked": 1.0}      # for a few rows and the tiny model


def findings(folder: Path, **contract) -> Findings:
    """Nothing found yet, under the lenient contract with these changes."""
    values = params.read(ROOT / "params.yaml")["recipes"]["sts"]["contract"]
    return Findings(Contract(**values | LENIENT | contract), folder)


@pytest.fixture
def look(tmp_path, tiny_model) -> Callable[..., Findings]:
    """look("sts", train=rows, ...) -> what prepare finds in a recipe's data, where the tiny model is its base.

    A split is rows with their header, or the text or bytes of a CSV file; other files come by name in `files`. The
    contract is the one of params.yaml, but for the tiny model's small vocabulary.
    """
    def run(recipe: str, contract: dict | None = None, files: dict[str, bytes] | None = None, tasks: dict | None = None,
            prepare: dict | None = None, base_model: Path | None = None, **splits) -> Findings:
        from steps import prepare as step

        raw, out = tmp_path / "raw", tmp_path / "out"
        for folder in (raw, out):
            shutil.rmtree(folder, ignore_errors=True)
        raw.mkdir()
        for split, content in splits.items():
            if isinstance(content, list):
                write_rows(raw / f"{split}.csv", content)
            else:
                (raw / f"{split}.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        for name, content in (files or {}).items():
            (raw / name).write_bytes(content)
        values = params.read(ROOT / "params.yaml")["recipes"][recipe]
        values |= {"dataset": "data/taught/raw", "suite": "raw", "tasks": tasks or {}}
        values["gate"]["guards"] = {}       # they name tasks
        values["contract"] |= {"unknown": 0.4} | (contract or {})
        values["prepare"] |= prepare or {}
        module = recipes.get(recipe)
        settings = module.Params.model_validate(values).model_copy(update={
            "dataset": str(raw), "base_model": str(base_model or tiny_model)})
        found = {path.name.split(".")[0]: [path] for path in sorted(raw.iterdir())}
        return step.fill(module, settings, out, found, found)
    return run


@pytest.fixture
def project(tmp_path, tiny_model, environment, databases) -> Project:
    """A project in which nothing has run; what takes a first run longest, its databases, is there."""
    project = make_project(tmp_path / "project", tiny_model, environment)
    shutil.copytree(databases, project / ".evergreen")
    return project


@pytest.fixture(scope="session")
def databases(tmp_path_factory, empty_store, environment) -> Path:
    """The folder .evergreen with the databases of Prefect and of MLflow as a first run makes them, nothing in them."""
    folder = shutil.copytree(empty_store / ".evergreen", tmp_path_factory.mktemp("databases") / ".evergreen")
    subprocess.run(["prefect", "server", "database", "upgrade", "--yes"], check=True, capture_output=True,
                   env=environment | {"PREFECT_HOME": str(folder / "prefect")})
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_model, environment) -> Project:
    """A project in which `evergreen run sts` has run once; tests leave it as it was."""
    project = make_project(tmp_path_factory.mktemp("finished") / "project", tiny_model, environment)
    project.git("remote", "add", "origin", f"https://user:{CANARY}@example.org/evergreen.git")
    project.ran = project.evergreen("run", "sts", PREFECT_RESULTS_PERSIST_BY_DEFAULT="true",
                                    **dict.fromkeys(SECRETS, CANARY))
    return project


@pytest.fixture
def copy(finished, tmp_path) -> Project:
    """The finished project with a registry that is still empty (MLflow keeps absolute paths)."""
    folder = shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    for path in (folder / ".evergreen").glob("ml*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Project(folder, finished.environment)


@pytest.fixture
def inside(monkeypatch) -> Callable[[Project], None]:
    """inside(project): this process works in its folder and on its store, until the test ends."""
    for key, value in (command.QUIET | command.OFFLINE | {"MLFLOW_TRACKING_URI": "", "EVERGREEN_TRACKING": ""}).items():
        monkeypatch.setenv(key, value)
    return lambda project: monkeypatch.chdir(project.folder)


@pytest.fixture
def here(project, inside) -> Project:
    """A project in which nothing has run, and in whose folder this process works."""
    inside(project)
    return project


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A folder with an MLflow store in which nothing is registered; its schema takes seconds to make."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "params.yaml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.chdir(folder)
        tracking.client()
    return folder


@pytest.fixture
def found(empty_store, inside, tmp_path):
    """A client of an empty store of its own, in whose folder this process works."""
    shutil.copytree(empty_store, tmp_path / "store")
    inside(SimpleNamespace(folder=tmp_path / "store"))
    return tracking.client()


@pytest.fixture
def evergreen(inside, capsys) -> Callable[..., SimpleNamespace]:
    """evergreen("embed", ...) runs the command in this process and in the folder it works in -> code, out, err."""
    def run(*arguments) -> SimpleNamespace:
        capsys.readouterr()
        code = command.status(cli.dispatch, [str(a) for a in arguments])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)
    return run


@pytest.fixture(scope="module")
def receiver():
    """Keeps what a webhook is told: `told`."""
    from tests.running import Receiver

    with Receiver() as found:
        yield found
        found.shutdown()


# Every recipe on a few rows, without the graph: tests/small.py


@pytest.fixture(scope="session")
def shipped() -> dict:
    """The entries of params.yaml as they are."""
    return params.load(ROOT / "params.yaml").recipes


@pytest.fixture
def small(shipped, tmp_path, tiny_model, monkeypatch):
    """small("nli", ...) -> the entry of params.yaml on a few rows of its sample, with a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERGREEN_TRACKING", "none")
    from tests.small import few_rows

    return lambda name, **train: few_rows(shipped[name], name, tiny_model, **train)
