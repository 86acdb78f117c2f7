"""The command line: quick help, one exit status for bad input, nothing begun that cannot be finished."""

import os
import re
import subprocess
import sys

import pytest

from flows import cli
from steps import command
from tests.project import ROOT

HEAVY = ("torch", "mlflow", "prefect", "dvc", "pandas", "transformers", "sentence_transformers", "numpy", "matplotlib")
COMMANDS = ("run", "check", "register", "promote", "predict", "embed", "rollback", "history", "explain", "reproduce",
            "compare", "delete", "pin", "drift", "deploy", "worker", "ui")


def test_help_imports_no_heavy_library(project):
    code = ("import sys\n"
            "from flows import cli\n"
            "try:\n"
            "    cli.dispatch(['--help'])\n"
            "finally:\n"
            "    print('heavy:', *sorted(set(sys.modules) & set(sys.argv[1:])))\n")
    said = project.run(sys.executable, "-c", code, *HEAVY).stdout
    assert "usage: evergreen" in said
    assert said.splitlines()[-1] == "heavy:"


def test_help_names_every_command_with_what_it_does(project):
    said = project.evergreen("--help", COLUMNS="200").stdout
    named = dict(re.findall(r"^    (\w+)\s+(\S.*)$", said, re.MULTILINE))
    assert set(COMMANDS) <= set(named)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.dispatch([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: evergreen {name} ")


@pytest.mark.parametrize("arguments", [(), ("bake",), ("run",), ("predict", "sts"), ("embed", "sts"),
                                       ("embed", "sts", "in.txt", "out.npy", "--batch-size", "many")])
def test_wrong_usage_exits_2_and_shows_the_right_one(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.dispatch(arguments)
    assert ended.value.code == 2
    assert "usage: evergreen" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "register"])
def test_an_unknown_recipe_exits_2_and_names_the_known_ones(project, command):
    done = project.evergreen(command, "stt", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: recipe 'stt' is not known; known recipes: sts\n"


def test_one_unknown_recipe_among_known_ones_starts_nothing(project):
    assert project.evergreen("run", "sts", "stt", check=False).returncode == 2
    assert not (project / "data").exists()


@pytest.mark.parametrize(("key", "value", "message"), [
    ("recipes.sts.train.epochs", 0, "recipes.sts.train.epochs = 0: Input should be greater than or equal to 1"),
    ("recipes.sts.train.learning_rate", "fast", "recipes.sts.train.learning_rate = 'fast': "),
    ("recipes.sts.train.epoch", 3, "recipes.sts.train.epoch is not a known key; remove it or correct its spelling"),
    ("recipes.sts.dataset", "data/raw/none", "recipes.sts.dataset = 'data/raw/none': no such stage; known: ")])
def test_a_bad_value_exits_2_before_any_stage(project, key, value, message):
    project.edit(key, value)
    done = project.evergreen("run", "sts", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: params.yaml: {message}")
    assert not (project / "data").exists() and not (project / "dvc.lock").exists()


def test_more_seeds_than_numpy_takes_exit_2_before_any_stage(project):
    project.edit("seed", 2**32 - 2)
    done = project.evergreen("run", "sts", "--seeds", "3", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: --seeds 3: the last of them would be 4294967296, and the largest is 4294967295; "
                           "lower seed (4294967294) in params.yaml\n")
    assert not (project / "data").exists()


def test_outside_a_project_the_missing_file_is_named(project, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    done = project.run(sys.executable, "-c", "import os; os.chdir('../elsewhere'); from flows import cli; cli.main()",
                       "run", "sts", check=False)
    assert (done.returncode, done.stderr) == (2, "error: params.yaml is not here; run this in the project's folder\n")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_path_that_is_not_as_it_must_be_is_named(tmp_path, capsys):
    def body(arguments):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder").write_text("no file", encoding="utf-8")
    assert command.status(body, []) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/folder: Is a directory; correct the path or its permissions\n")


def test_a_refusal_without_a_path_says_what_it_was(capsys):
    def body(arguments):
        raise PermissionError("the key of the store is another user's")
    assert command.status(body, []) == 2
    assert capsys.readouterr().err == (
        "error: the key of the store is another user's; correct the path or its permissions\n")


STEP = """
import os, time
from steps import command
print("begun", flush=True)
while {gone} and str(os.getppid()) == os.environ[command.PARENT]:
    time.sleep(0.01)
command.die_with_parent()
print("works")
"""
STARTER = """
import os, subprocess, sys
from steps import command
os.environ[command.PARENT] = str(os.getpid())
step = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
if {gone}:
    os._exit(0)
step.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("gone, said", [(False, "begun\nworks\n"), (True, "begun\n")])
def test_a_step_whose_parent_was_gone_before_it_could_ask_for_its_end_does_nothing(gone, said):
    done = subprocess.run([sys.executable, "-c", STARTER.format(gone=gone), STEP.format(gone=gone)], cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, timeout=60,
                          check=True)
    assert done.stdout == said
