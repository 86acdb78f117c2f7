"""Kill -9 in registration and promotion, deciders and writers at once, files that may not be loaded: what is in charge
is the old or the new version, and it loads."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from steps import command, history, register, registry, tracking
from steps.schema import InputError
from tests import shelf
from tests.planted import BAD, GOOD, make_shelf
from tests.project import ROOT, Project

PROMOTIONS, DECISIONS, REGISTRATIONS, RACES, WRITERS, EACH = 40, 4, 10, 12, 8, 25


@pytest.fixture
def faults(environment):
    """faults(folder, "races", 20, 1): what tests/faults.py says when it is run there."""
    def run(folder: Path, function: str, *numbers: int, **variables: str):
        done = subprocess.run([sys.executable, "-m", "tests.faults", function, *map(str, numbers)], cwd=folder,
                              env=environment | {"PYTHONPATH": str(ROOT)} | variables, capture_output=True, text=True,
                              timeout=500, check=False)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)
    return run


@pytest.fixture
def folder(empty_store, tmp_path) -> Path:
    shutil.copytree(empty_store, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def unregistered(finished, tmp_path, environment) -> Project:
    """A copy of the finished project without its store."""
    shutil.copytree(finished.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".evergreen"))
    return Project(tmp_path / "copy", environment)


@pytest.mark.fault(22)
def test_a_promotion_that_is_killed_leaves_the_old_or_the_new_champion_and_a_log_that_says_which(faults, folder):
    rounds = faults(folder, "killed_promotions", PROMOTIONS, 1)
    assert [r["code"] for r in rounds] == [-9] * PROMOTIONS
    assert {r["now"] in (r["before"], r["to"]) and r["loads"] for r in rounds} == {True}
    assert [r for r in rounds if r["noticed"] or r["problems"] or r["open"] or r["says"] != r["now"]] == []
    assert {r["now"] == r["to"] for r in rounds} == {True, False}, "both sides of the alias were hit"


@pytest.mark.fault(22)
def test_a_decision_that_is_killed_leaves_the_old_or_the_new_champion_and_the_next_one_ends_it(
        faults, finished, tmp_path):
    shelf = make_shelf(finished, tmp_path / "shelf")
    rounds = faults(shelf.folder, "killed_decisions", DECISIONS, 1, **command.QUIET | command.OFFLINE)
    assert [r["code"] for r in rounds] == [-9] * DECISIONS
    assert [r for r in rounds if r["now"] not in (GOOD, BAD) or not r["loads"]] == []
    assert [r for r in rounds if r["noticed"] or r["problems"] or r["says"] != r["now"]] == []
    assert [r for r in rounds if r["judged"] and not r["whole"]] == []
    assert [r["again"] for r in rounds] == [[[GOOD, "promoted"], GOOD]] * DECISIONS
    assert {r["now"] for r in rounds} == {GOOD, BAD}, "both sides of the alias were hit"


@pytest.mark.fault(19)
def test_a_registration_that_is_killed_leaves_no_version_that_does_not_load_and_no_run_that_goes_on(
        faults, unregistered):
    *rounds, finish = faults(unregistered.folder, "killed_registrations", REGISTRATIONS, 1)
    assert [r["code"] for r in rounds] == [-9] * REGISTRATIONS
    assert [r for r in rounds if not r["versions"] == r["trusted"] == r["complete"]] == []
    assert [finish[what] for what in ("trusted", "contents", "stored")] == [finish["versions"]] * 3
    assert finish["same"] and finish["aliases"] == ["challenger"]
    assert finish["statuses"] == ["FINISHED"]


@pytest.mark.fault(23)
@pytest.mark.parametrize("apart", [0, 1], ids=["one clone", "two clones on one store"])
def test_of_two_challengers_at_once_the_better_ends_in_charge_and_both_decisions_are_kept(faults, folder, apart):
    for turn, found in enumerate(faults(folder, "races", RACES, 1, apart), start=1):
        assert (found["champion"], found["problems"], found["codes"]) == (found["best"], [], [0, 0])
        assert len(found["decided"]) == 2 * turn and set(found["decided"][-2:]) == set(found["pair"])


def everything_was_registered(said: dict, each: int = EACH) -> None:
    """As many distinct versions of each writer beside the first, none lost; no writer or reader failed."""
    assert [code for code, _ in said["writers"] + said["readers"]] == [0] * (WRITERS + 2)
    made = [number for _, numbers in said["writers"] for number in numbers]
    assert len(set(made)) == WRITERS * each
    assert said["numbers"] == [1, *sorted(made)]
    assert (said["problems"], said["entries"], said["says"]) == ([], WRITERS * each // 5, said["champion"])
    assert all(seen > 0 for _, seen in said["readers"])


@pytest.mark.fault(21)
def test_eight_writers_at_once_lose_no_version_and_readers_of_the_champion_can_load_it(faults, folder):
    everything_was_registered(faults(folder, "writers", WRITERS, EACH))


@contextlib.contextmanager
def with_file(path: Path, content: bytes):
    path.write_bytes(content)
    try:
        yield path
    finally:
        path.unlink()


@pytest.mark.parametrize(("name", "content"), [
    ("model.pkl", b""), ("pytorch_model.bin", b""), ("weights", b"\x80\x04\x95rest"),
    ("optimizer", b"PK\x03\x04" + b"\0" * 26 + b"archive/data.pklFB")], ids=["pkl", "bin", "protocol 4", "torch"])
def test_a_model_with_a_pickle_is_not_registered(unregistered, inside, name, content):
    inside(unregistered)
    with with_file(unregistered / "models/sts" / name, content), \
            pytest.raises(InputError, match=f"models/sts/{name} is a pickle, which runs code when it is loaded"):
        register.register("sts")
    assert registry.model(tracking.client(), "sts") == ({}, {})


@pytest.mark.fault(25)
def test_a_version_with_a_pickle_is_never_loaded_or_promoted_though_its_digest_is_right(found):
    number = shelf.put(found, b"\x80\x04\x95rest", "weights")
    for use in (lambda: registry.resolve(f"sts@{number}"), lambda: history.move(found, "sts", number, "", "promote")):
        with pytest.raises(InputError, match="weights is a pickle, which runs code when it is loaded"):
            use()
    assert registry.model(found, "sts")[0] == {}


def test_mlflow_itself_loads_no_pickle(found, inside):
    import mlflow

    assert not mlflow.environment_variables.MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get()


@pytest.mark.fault(19)
@pytest.mark.parametrize("source", ["/nonexistent/model", "/etc"])
def test_a_version_from_nowhere_is_never_loaded_or_promoted(found, source):
    """MLflow makes a version of any source and calls it ready."""
    found.create_registered_model("sts")
    assert found.create_model_version("sts", source).status == "READY"
    for use in (lambda: registry.resolve("sts@1"), lambda: history.move(found, "sts", 1, "", "promote")):
        with pytest.raises(InputError, match="sts@1 has no digest of its files: it was not registered by Evergreen"):
            use()


@pytest.mark.fault(25)
def test_a_version_whose_files_are_gone_is_never_loaded_or_promoted(found):
    shelf.add(found)
    shutil.rmtree("shelf")
    for use in (lambda: registry.resolve("sts@1"), lambda: history.move(found, "sts", 1, "", "promote")):
        with pytest.raises(InputError, match=r"^sts@1: .*restore them from a backup or register the model again"):
            use()


@pytest.mark.fault(19)
@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_a_run_that_did_not_finish_gives_no_version(unregistered, inside, status):
    inside(unregistered)
    found = tracking.client()
    run = found.create_run(tracking.experiment(found, "sts")).info.run_id
    found.set_tag(run, "weights_sha256", registry.provenance.sha256(unregistered / "models/sts/model.safetensors"))
    if status != "RUNNING":
        found.set_terminated(run, status)
    with pytest.raises(InputError, match=rf"run {run} has not finished \({status}\), so its model is not registered"):
        register.register("sts")
    assert registry.model(found, "sts") == ({}, {})


def test_a_folder_without_a_model_gives_no_version(found, tmp_path):
    with pytest.raises(InputError, match=r"holds no model\.safetensors; make it with: evergreen run sts"):
        registry.register(found, "sts", "embedding", "no run", tmp_path / "absent", [], {}, "")


def test_a_store_that_does_not_answer_is_not_a_store_without_a_champion(found, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    def fails(*_):
        raise MlflowException("no connection")
    monkeypatch.setattr(SqlAlchemyStore, "get_registered_model", fails)
    with pytest.raises(MlflowException, match="no connection"):
        registry.champion(found, "sts")
