"""A user of this machine, a tiny BERT, a few rows, and a small project of them: all real, all offline."""

import csv
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
OUR_VARIABLES = ("PREFECT_", "MLFLOW_", "DVC_", "EVERGREEN_", "HF_", "GIT_")


def new_user(home: Path) -> dict[str, str]:
    """The environment of a user with nothing set, a home of their own and git's name."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(OUR_VARIABLES)}
    clean["HOME"] = str(home)
    clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    for who in ("AUTHOR", "COMMITTER"):
        clean |= {f"GIT_{who}_NAME": "Test", f"GIT_{who}_EMAIL": "test@localhost"}
    return clean


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


OUTPUTS = ("data", "models", "evaluation")


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file that the stages left in a project."""
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for out in OUTPUTS for p in sorted((folder / out).rglob("*"))
            if p.is_file() and p.name != ".gitignore"}


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
