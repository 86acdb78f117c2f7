"""`evergreen pin` asks the hub for a branch's commit and writes it, and nothing else, into params.yaml."""

import difflib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.project import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = "      revision: d482672c8e74ce18da116f430137434ba2e52fab\n"


@pytest.fixture
def hub():
    with HubServer() as server:
        server.branches["sentence-transformers/all-nli"] = {"main": COMMIT, "v2": "f" * 40}
        yield server


@pytest.fixture
def python(hub, tmp_path, environment):
    """python(ARGUMENT, ...) in a folder with the shipped params.yaml."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    here = environment | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT),
                          "NO_PROXY": "*", "no_proxy": "*"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=here, text=True, capture_output=True,
                              timeout=120, check=False)
    return run


@pytest.fixture
def pin(python):
    return lambda *names: python("-m", "flows.cli", "pin", *names)


def changed(tmp_path: Path) -> list[str]:
    lines = difflib.ndiff((ROOT / "params.yaml").read_text().splitlines(True),
                          (tmp_path / "params.yaml").read_text().splitlines(True))
    return [line for line in lines if line[0] in "+-"]


def edit(tmp_path: Path, old: str, new: str) -> None:
    text = (tmp_path / "params.yaml").read_text()
    assert text.count(old) == 1
    (tmp_path / "params.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize(("stands", "commit"), [
    ("      revision: main\n", COMMIT), ("      revision: v2\n", "f" * 40), ("", COMMIT)],
    ids=["a branch", "a tag", "nothing"])
def test_what_stands_there_is_resolved_and_only_that_line_changes(pin, tmp_path, stands, commit):
    edit(tmp_path, PINNED, stands)
    done = pin("all-nli")
    assert done.returncode == 0, done.stderr
    assert changed(tmp_path) == [f"- {PINNED}", f"+       revision: {commit}\n"]
    assert commit in done.stdout


def test_an_entry_without_a_commit_is_refused_with_the_remedy(pin, tmp_path, environment):
    for stands in ("      revision: main\n", ""):
        shutil.copy(ROOT / "params.yaml", tmp_path)
        edit(tmp_path, PINNED, stands)
        done = subprocess.run([sys.executable, "-m", "flows.cli", "run", "sts"], cwd=tmp_path, text=True,
                              env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
        assert done.returncode == 2
        assert "published.datasets.all-nli" in done.stderr
        assert "evergreen pin NAME" in done.stderr


def test_a_branch_that_the_hub_does_not_have_leaves_the_file(pin, tmp_path):
    edit(tmp_path, PINNED, "      revision: gone\n")
    before = (tmp_path / "params.yaml").read_bytes()
    done = pin("all-nli")
    assert done.returncode == 2
    assert "sentence-transformers/all-nli at 'gone' cannot be looked up" in done.stderr
    assert (tmp_path / "params.yaml").read_bytes() == before


def test_a_name_that_is_no_hub_source_is_refused_with_those_that_are(pin):
    done = pin("appliances")
    assert done.returncode == 2
    assert "no hub source 'appliances'" in done.stderr and "bert-base-uncased" in done.stderr


def test_a_hub_that_cannot_be_reached_is_named(pin, hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    done = pin("all-nli")
    assert done.returncode == 2
    assert done.stderr.startswith("error: sentence-transformers/all-nli at 'd482672c8e74ce18da116f430137434ba2e52fab' "
                                  "cannot be looked up: ")
    assert changed(tmp_path) == []


def test_without_a_name_every_source_that_follows_a_branch_is_pinned_and_can_be_again(pin, tmp_path):
    edit(tmp_path, PINNED, PINNED + "      follow: v2\n")
    done = pin()
    assert (done.returncode, done.stdout) == (
        0, f"sentence-transformers/all-nli: v2 is {'f' * 40}, written to params.yaml\n"), done.stderr
    followed = [f"- {PINNED}", f"+       revision: {'f' * 40}\n", "+       follow: v2\n"]
    assert changed(tmp_path) == followed
    assert pin().stdout == f"sentence-transformers/all-nli: v2 is still {'f' * 40}\n"
    assert changed(tmp_path) == followed


def test_without_a_name_and_a_branch_to_follow_the_remedy_is_named(pin, tmp_path):
    done = pin()
    assert done.returncode == 2 and "no source follows a branch; name one of all-MiniLM-L6-v2, all-nli, " in done.stderr
    assert changed(tmp_path) == []


@pytest.mark.parametrize(("follow", "said"), [
    ("main", f"all-nli: sentence-transformers/all-nli at 'main' is {COMMIT}, pinned is {PINNED.split()[1]}; to train "
             "on it: evergreen pin all-nli, and commit params.yaml"),
    ("same", ""), ("gone", "sentence-transformers/all-nli at 'gone' cannot be looked up: "), (None, "")])
def test_a_newer_commit_than_the_pinned_one_is_news(python, hub, tmp_path, follow, said):
    hub.branches["sentence-transformers/all-nli"]["same"] = PINNED.split()[1]
    if follow:
        edit(tmp_path, PINNED, PINNED + f"      follow: {follow}\n")
    stages = ["published/dvc.yaml:dataset@all-nli", "import_dataset@appliances", "published/dvc.yaml:model@mpnet-base",
              "prepare@nli", "train@sts"]
    done = python("-c", f"from flows import pin; print(*pin.news({stages}), sep='|', end='')")
    assert done.returncode == 0, done.stderr
    newer, _, unknown = done.stdout.partition("|")
    there, other = (unknown, newer) if follow == "gone" else (newer, unknown)
    assert other == "[]" and there.strip("[]'\"").startswith(said) and (there == "[]") == (not said)


def test_news_are_told_once_whichever_recipe_finds_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    from flows import notifications

    told = []
    monkeypatch.setattr(notifications, "announce", lambda event, texts: told.append((event, texts)))
    for news in (["a"], ["a"], [], ["a", "b"], ["b"], ["a"]):
        notifications.announce_new(news)
    assert told == [(notifications.NEWS, ["a"]), (notifications.NEWS, ["b"])]
