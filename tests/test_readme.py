"""Every command of the README works, in its order, in a small project."""

import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.hub_server import HubServer
from tests.project import ROOT, Project, make_project

README = (ROOT / "README.md").read_text(encoding="utf-8")
# This very run, and what tests/test_stack.py runs where PostgreSQL is.
ELSEWHERE = {"make test": "-m pytest", "make stack": "-m infra.stack up", "make stack-down": "-m infra.stack down"}


def commands() -> list[str]:
    return [line for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
            for line in block.splitlines()]


@pytest.mark.timeout(1800)      # each is a whole run; ten minutes on a slow machine
def test_every_command_works(tmp_path, tiny_model, environment):
    project = make_project(tmp_path / "project", tiny_model, environment)
    with_make(project)
    with_emotion(project)
    done = []
    for command in commands():
        if command in ELSEWHERE:
            target = command.removeprefix("make ")
            rule, = re.findall(rf"^{target}:.*\n\t(.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert ELSEWHERE[command] in rule
        elif command == "evergreen ui":
            page_answers(project)
        else:
            if command.startswith("dvc pull"):
                project = elsewhere(project)
            if command == "evergreen run pairs":
                copy_entry(project)
            if command.startswith("evergreen pin"):
                pin(project, command)
                continue
            said = project.run("bash", "-c", command).stdout
            if command == "evergreen reproduce sts@1":
                assert "equal: sts@1 has weights sha256" in said
            if command == "dvc repro evaluate@sts" and "dvc pull --run-cache --with-deps evaluate@sts" in done:
                assert "Running stage 'train" not in said
        done.append(command)
    assert len(done) > 18


def with_make(project: Project) -> None:
    """Gives the project the environment of this test as its .venv; its own code comes first."""
    project.environment = project.environment | {"PYTHONPATH": str(project.folder)}
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, project / name)
    (project / ".venv").mkdir()
    (project / ".venv/bin").symlink_to(Path(shutil.which("evergreen", path=project.environment["PATH"])).parent)
    (project / ".venv/done").touch()
    commit(project)


def with_emotion(project: Project) -> None:
    """Adds the second recipe that the README runs, on a few of its sample rows."""
    ours = YAML(typ="safe").load(ROOT / "params.yaml")
    for split in ("train", "dev", "test"):
        lines = (ROOT / f"samples/moods/{split}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (project / "samples/moods").mkdir(exist_ok=True)
        (project / f"samples/moods/{split}.csv").write_text("".join(lines[:41]), encoding="utf-8")
    recipe = ours["recipes"]["emotion"]
    recipe |= {"base_model": "models/base/tiny"}
    recipe["train"] |= {"epochs": 1}
    recipe["evaluate"] |= {"resamples": 100}
    project.edit("datasets.local.moods", ours["datasets"]["local"]["moods"])
    project.edit("recipes.emotion", recipe)
    project.edit("published", ours["published"])
    commit(project)


def pin(project: Project, command: str) -> None:
    """The hub is a local server with its protocol."""
    commit = "a" * 40
    with HubServer() as hub:
        hub.branches["sentence-transformers/all-nli"] = {YAML(typ="safe").load(project / "params.yaml")[
            "published"]["datasets"]["all-nli"]["revision"]: commit}
        said = project.run("bash", "-c", command, HF_ENDPOINT=hub.url, NO_PROXY="*", no_proxy="*").stdout
    assert commit in said and commit in (project / "params.yaml").read_text(encoding="utf-8")


def commit(project: Project) -> None:
    project.git("add", "-A")
    project.git("commit", "--allow-empty", "-qm", "Next")


def copy_entry(project: Project) -> None:
    values = YAML(typ="safe").load(project / "params.yaml")
    project.edit("recipes.pairs", values["recipes"]["sts"])


def elsewhere(project: Project) -> Project:
    """A clone at the same commit with the same remote, on which nothing has run."""
    commit(project)
    folder = project.folder.parent / "clone"
    clone = Project(folder, project.environment | {"PYTHONPATH": str(folder)})
    project.git("clone", "-q", ".", str(clone.folder))
    clone.run("dvc", "remote", "add", "--local", "--default", "store", "../store")
    return clone


def page_answers(project: Project) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = subprocess.Popen(["evergreen", "ui", "--port", str(port)], cwd=project.folder, env=project.environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                    assert b"<title>MLflow" in answer.read()
                return
            except urllib.error.URLError:
                assert time.monotonic() < deadline and page.poll() is None
                time.sleep(0.2)
    finally:
        page.send_signal(signal.SIGINT)
        try:
            page.wait(20)
        finally:
            page.kill()


def test_the_files_that_the_readme_shows_are_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 3
    assert [link for link in links if not (ROOT / link).exists()] == []
