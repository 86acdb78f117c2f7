"""Nothing that a user or a downloaded file brings runs code, leaves the project or tells a secret."""

import json
import pickle
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from steps import command, download, embedding, schema
from steps.schema import InputError
from steps.sources import LocalDataset, RemoteDataset
from tests.conftest import CANARY, SECRETS
from tests.killing import Training
from tests.project import ROOT
from tests.test_contract import sts

PAYLOADS = [
    "$(touch PWNED)", "`touch PWNED`", "x; touch PWNED", "x && touch PWNED", "x || touch PWNED", "x | touch PWNED",
    "x & touch PWNED", "x\ntouch PWNED", "x' ; touch PWNED ; '", 'x" ; touch PWNED ; "', "'$(touch PWNED)'",
    '"$(touch PWNED)"', "'\"`touch PWNED`\"'", "x > PWNED", "x;{touch,PWNED}", "x;touch${IFS}PWNED", "x #\ntouch PWNED",
    "--help; touch PWNED", "<(touch PWNED)", "\\$(touch PWNED)"]


class Payload:
    """Unpickled, it runs a command."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "PWNED"


# Command lines


def test_no_word_of_params_stands_in_a_command():
    for path in ("dvc.yaml", "published/dvc.yaml"):
        stages = YAML(typ="safe").load((ROOT / path).read_text(encoding="utf-8"))["stages"]
        commands = [stage["do"]["cmd"] for stage in stages.values()]
        assert len(commands) == len(stages) > 1
        for line in commands:
            assert re.findall(r"(?<!\\)\$\{", line) == [], line
            unquoted = re.sub(r'"[^"]*"', "", line).replace("n=\\${DVC_STAGE#*@};", "")
            assert "$" not in unquoted, line


def test_twenty_payloads_as_names_have_no_effect(project, tmp_path):
    """DVC alone runs a stage of each name, and every one is refused by the step it starts."""
    def change(values: dict) -> None:
        entry = values["datasets"]["local"]["appliances"]
        values["datasets"]["local"] = {payload: dict(entry) for payload in PAYLOADS}

    project.change(change)
    assert len(set(PAYLOADS)) == 20
    stages = [f"import_dataset@{payload}" for payload in PAYLOADS]
    done = project.dvc("repro", "--keep-going", *stages, check=False)
    assert done.returncode != 0 and done.stdout.count("Running stage") == 20
    assert "a name has letters, digits" in done.stderr
    assert [*tmp_path.rglob("PWNED")] == []


def test_the_search_for_effects_would_find_one(tmp_path):
    subprocess.run(["sh", "-c", f"echo {PAYLOADS[0]}"], cwd=tmp_path, check=True)
    assert [*tmp_path.rglob("PWNED")] == [tmp_path / "PWNED"]


# Names and paths


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc", ".hidden", "", "a b", "a\0b", "-x", "x\n", *PAYLOADS])
def test_names_are_letters_digits_and_a_few_signs(name):
    class Named(schema.Strict):
        name: schema.Name

    with pytest.raises(ValueError, match="a name has letters"):
        Named(name=name)


@pytest.mark.parametrize("file", ["../../etc/hostname", "/etc/hostname", "a/../../b", ".."])
def test_files_of_a_data_set_lie_inside_it(file):
    with pytest.raises(ValueError, match="must be a path inside the project"):
        LocalDataset(path="mine", licence="MIT", splits={"train": [file]})
    with pytest.raises(ValueError, match="must be a path inside the project"):
        RemoteDataset(url="http://x", licence="MIT", splits={"train": [file]}, sha256={file: "0" * 64})


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_out_of_a_data_set_is_refused(tmp_path, link):
    (tmp_path / "mine").mkdir()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/train.csv").write_text("secret\n", encoding="utf-8")
    if link == "file":
        (tmp_path / "mine/train.csv").symlink_to(tmp_path / "secrets/train.csv")
    else:
        (tmp_path / "mine/more").symlink_to(tmp_path / "secrets")
    entry = LocalDataset(path=str(tmp_path / "mine"), licence="MIT", splits={
        "train": ["train.csv" if link == "file" else "more/train.csv"]})
    with pytest.raises(InputError, match=r"train.csv links to .*/secrets/train.csv, outside"):
        download.download("it", entry, "dataset", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_below_a_link_out_of_the_project_is_refused(tmp_path, monkeypatch):
    (tmp_path / "project/data").mkdir(parents=True)
    (tmp_path / "outside/sts").mkdir(parents=True)
    (tmp_path / "outside/sts/mine.txt").write_text("mine\n", encoding="utf-8")
    (tmp_path / "project/data/prepared").symlink_to(tmp_path / "outside")
    monkeypatch.chdir(tmp_path / "project")
    with pytest.raises(InputError, match=r"^data/prepared is a link that leads out of this folder, to .*/outside; "), (
            command.whole(Path("data/prepared/sts"))):
        pass
    assert [path.name for path in (tmp_path / "outside/sts").iterdir()] == ["mine.txt"]


# Secrets


def files_with(text: str, folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.is_file() and text.encode() in path.read_bytes())


def test_secrets_of_the_environment_stand_nowhere(finished):
    """No log, parameter, artifact, model, cache or database; only git's own file has the remote it was told."""
    assert files_with(CANARY, finished.folder) == [".git/config"]
    assert CANARY not in finished.ran.stdout + finished.ran.stderr
    databases = {path.name for path in finished.folder.rglob("*.db")}
    assert {"mlflow.db", "prefect.db"} <= databases


def test_secrets_stand_in_no_checkpoint(small, monkeypatch):
    """Of a training that was killed: else they are gone when it ends."""
    for name in SECRETS:
        monkeypatch.setenv(name, CANARY)
    found = Training(monkeypatch, "sts", small("sts", epochs=1))
    found.killed_at(3)
    assert len(found.checkpoints()) == 2
    assert files_with(CANARY, Path.cwd()) == []


# Pickles


def test_prefect_keeps_no_result_that_could_be_a_pickle(finished):
    """Although the setting said that it should keep them."""
    home = finished / ".evergreen/prefect"
    assert [path for path in (home / "storage").rglob("*") if path.is_file()] == []
    with sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True) as database:
        for table in ("flow_run_state", "task_run_state"):
            data = [json.loads(found) for found, in database.execute(f"SELECT data FROM {table}") if found]
            assert all(found is None or "pickle" not in json.dumps(found) for found in data)
        assert database.execute("SELECT count(*) FROM task_run_state").fetchone()[0] > 0


def test_mlflow_refuses_a_pickled_model(tmp_path, inside, mark):
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    assert command.QUIET["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"

    class Model(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input

    mlflow.pyfunc.save_model(tmp_path / "model", python_model=Model(), pip_requirements=[])
    (tmp_path / "model/python_model.pkl").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(MlflowException, match=r"(?i)pickle"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert not mark.exists()


@pytest.fixture
def pickled(tiny_model, tmp_path, mark) -> Path:
    """The tiny model, whose weights are a pickle that runs a command."""
    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    return folder


def test_weights_that_are_a_pickle_are_refused_before_training(look, pickled, mark):
    said, = look("sts", base_model=pickled, **sts()).stops
    assert said.startswith(f"{pickled} has no weights as safetensors; other formats can run code when they are loaded")
    assert not mark.exists()


def test_weights_that_are_a_pickle_are_not_run_by_who_loads_them(pickled, mark):
    with pytest.raises(Exception):  # noqa: B017, the library's own, whichever it is
        embedding.encoder(pickled, 32, "mean")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))  # noqa: S301
    assert mark.exists()


def test_code_that_comes_with_a_model_is_not_run(tiny_model, tmp_path, mark):
    folder = shutil.copytree(tiny_model, tmp_path / "custom")
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(Exception):  # noqa: B017
        embedding.encoder(folder, 32, "mean")
    assert not mark.exists()


# The environment


def test_what_is_installed_is_pinned_by_hash_and_so_says_make():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if "$(PIP) install" in line]
    assert "--require-hashes --only-binary :all:" in installs[0] and "-r requirements.lock" in installs[0]
    assert all("requirements.torch.txt" in line or "--no-deps" in line for line in installs)
