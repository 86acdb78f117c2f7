"""A tiny BERT and a tiny project, made offline; every driver in these tests is the real one."""

import csv
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

from flows import cli
from steps import command, params, recipes, tracking
from steps.contract import Findings
from steps.schema import Contract
from tests.order import pytest_collection_modifyitems  # noqa: F401

ROOT = Path(__file__).parent.parent
OUR_VARIABLES = ("PREFECT_", "MLFLOW_", "DVC_", "EVERGREEN_", "HF_", "GIT_")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=1, help="kill -9 of each recipe's training (make reliability: 20)")


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    return new_user(tmp_path_factory.mktemp("home"))


def new_user(home: Path) -> dict[str, str]:
    """The environment of a user with nothing set, a home of their own and git's name."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(OUR_VARIABLES)}
    clean["HOME"] = str(home)
    clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    for who in ("AUTHOR", "COMMITTER"):
        clean |= {f"GIT_{who}_NAME": "Test", f"GIT_{who}_EMAIL": "test@localhost"}
    return clean


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-bert")


def make_tiny_model(folder: Path) -> Path:
    """A BERT of 2 layers and 32 dimensions with a vocabulary from the samples, random weights of a fixed seed."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = BertWordPieceTokenizer(lowercase=True)
    words.train([str(p) for p in sorted((ROOT / "samples/appliances").glob("*.csv"))], vocab_size=800,
                show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=words._tokenizer)
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=words.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
                                 num_attention_heads=2, intermediate_size=64, max_position_embeddings=128))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sample(split: str, count: int) -> list[list[str]]:
    """The header and the first rows of a sample file."""
    with open(ROOT / f"samples/appliances/{split}.csv", encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines))[:count + 1]


def write_rows(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


CANARY = "hf_canaryThatMustStandNowhere"      # what the variables of SECRETS held when `finished` was made
SECRETS = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "EVERGREEN_SECRET")
OUTPUTS = ("data", "models", "evaluation")


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file that the stages left in a project."""
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for out in OUTPUTS for p in sorted((folder / out).rglob("*"))
            if p.is_file() and p.name != ".gitignore"}


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
        values["contract"] |= {"unknown": 0.4} | (contract or {})
        values["prepare"] |= prepare or {}
        module = recipes.get(recipe)
        settings = module.Params.model_validate(values).model_copy(update={
            "dataset": str(raw), "base_model": str(base_model or tiny_model)})
        found = {path.name.split(".")[0]: [path] for path in sorted(raw.iterdir())}
        return step.fill(module, settings, out, found, found)
    return run


class Project:
    """A small project in a folder of its own: real code, real dvc.yaml, tiny model and data."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        done = subprocess.run(command, cwd=self.folder, env=self.environment | environment, text=True, timeout=600,
                              capture_output=True, stdin=subprocess.DEVNULL, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def evergreen(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "flows.cli", *arguments, check=check, **environment)

    def dvc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "dvc", *arguments, check=check)

    def git(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.run("git", *arguments)

    def change(self, change: Callable[[dict], None]) -> None:
        """Lets `change` work on the values of params.yaml."""
        yaml = YAML()
        values = yaml.load(self / "params.yaml")
        change(values)
        yaml.dump(values, self / "params.yaml")

    def edit(self, keys: str, value) -> None:
        """Sets one value of params.yaml: edit('recipes.sts.train.epochs', 2)."""
        def change(values: dict) -> None:
            *path, last = keys.split(".")
            for key in path:
                values = values[key]
            values[last] = value
        self.change(change)

    def start(self) -> "Project":
        """Makes it a git repository with one commit."""
        self.git("init", "-q")
        self.git("add", "-A")
        self.git("commit", "-qm", "Start")
        return self


def copy_project(folder: Path, tiny_model: Path, environment: dict[str, str]) -> Project:
    """The code, graph and parameters of this project, and the tiny model beside them; no samples yet."""
    for name in ("steps", "flows", "published"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", "requirements.train.lock",
                 "requirements.torch.txt"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "README.md").write_text("A project.\n", encoding="utf-8")
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
    shutil.copytree(tiny_model, folder / "tiny-bert")
    return Project(folder, environment)


BASE_MODELS = {"local": {"tiny": {"path": "tiny-bert", "licence": "Apache-2.0"}}, "remote": {}}


def make_project(folder: Path, tiny_model: Path, environment: dict[str, str]) -> Project:
    """A project of the recipe sts alone, on the first rows of its samples."""
    project = copy_project(folder, tiny_model, environment)
    only_sts(project)
    return project.start()


def only_sts(project: Project) -> None:
    """Leaves the recipe sts alone, on the first rows of its samples and the tiny model that lies in the project."""
    shutil.rmtree(project / "published")
    for split, count in (("train", 48), ("dev", 16), ("test", 24)):
        write_rows(project / f"samples/appliances/{split}.csv", sample(split, count))

    def change(values: dict) -> None:
        sts = values["recipes"]["sts"]
        sts["base_model"] = "models/base/tiny"
        sts["train"] |= {"epochs": 1, "learning_rate": 0.001}
        sts["evaluate"]["resamples"] = 200
        del values["published"]
        values |= {"threads": 1, "base_models": BASE_MODELS, "teachers": {}, "references": {}, "recipes": {"sts": sts},
                   "datasets": {"local": {"appliances": values["datasets"]["local"]["appliances"]}, "remote": {}}}
    project.change(change)


@pytest.fixture
def project(tmp_path, tiny_model, environment) -> Project:
    """A project in which nothing has run."""
    return make_project(tmp_path / "project", tiny_model, environment)


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
