"""One graph, two drivers: the flow and `dvc repro` leave the same bytes."""

import os
import sqlite3

import pytest
from ruamel.yaml import YAML

from tests.project import digests, make_project


def test_flow_and_dvc_repro_leave_equal_bytes_and_the_same_lock(finished, tmp_path, tiny_model, environment):
    other = make_project(tmp_path / "elsewhere" / "project", tiny_model, environment)
    other.edit("checkpoint_seconds", 0)
    other.dvc("repro", "train@sts")
    assert list(other.folder.glob(".evergreen/checkpoints/sts/*/*/manifest.json"))      # else a kill before DVC has it
    other.dvc("repro")
    assert not (other / ".evergreen/checkpoints/sts").exists()
    ours, theirs = digests(finished.folder), digests(other.folder)
    assert {"models/sts/model.safetensors", "data/prepared/sts/train.arrow", "evaluation/sts/test/metrics.json",
            "evaluation/sts/test/predictions.csv", "evaluation/sts/training/loss.csv"} <= set(ours)
    assert ours == theirs
    assert (finished / "dvc.lock").read_bytes() == (other / "dvc.lock").read_bytes()

    # what dvc repro made is registered by hand, and its run has what a run of the flow has
    said = other.evergreen("register", "sts").stdout
    assert "sts@1 (challenger), registered now" in said
    assert "sts@1 (challenger), registered before" in other.evergreen("register", "sts").stdout


def test_a_first_run_registers_and_says_so(finished):
    assert "sts@1 (challenger), registered now" in finished.ran.stdout
    assert "train@sts ran" in finished.ran.stdout
    assert finished.git("status", "--porcelain").stdout.split() == ["??", "dvc.lock"]


def test_a_second_run_does_nothing(finished):
    said = finished.evergreen("run", "sts").stdout
    assert "nothing to do: 5 stages unchanged" in said
    assert "sts@1 (challenger), registered before" in said


def test_a_restored_model_is_registered_with_a_run_rebuilt_from_its_files(finished, tmp_path, tiny_model, environment):
    """Where training ran without MLflow, register makes the run from the tracked files, once."""
    other = make_project(tmp_path / "project", tiny_model, environment)
    other.run("python", "-m", "dvc", "repro", EVERGREEN_TRACKING="none")
    assert not (other / ".evergreen/mlflow.db").exists()
    other.evergreen("register", "sts")
    code = ("from steps import tracking; c = tracking.client(); r, = c.search_runs(['1']);"
            "print(r.info.status, r.data.params['train.epochs'], r.data.tags['rebuilt'],"
            "len(c.get_metric_history(r.info.run_id, 'train_loss')) > 0,"
            "len(c.get_metric_history(r.info.run_id, 'dev_loss')))")
    assert other.run("python", "-c", code).stdout.split() == [
        "FINISHED", "1", "from", "the", "tracked", "files;", "no", "timings", "True", "2"]


@pytest.mark.skipif(os.cpu_count() < 2, reason="one core runs one stage at a time")
def test_siblings_train_side_by_side_and_leave_nothing_in_the_home_and_temporary_folders(project, tmp_path):
    """Two recipes on the same base overlap in time: each starts before the other's last step is logged."""
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    project.edit("recipes.sts.train.epochs", 8)
    project.edit("recipes.sts.train.patience", 8)
    entry = YAML(typ="safe").load(project / "params.yaml")["recipes"]["sts"]
    (project / "steps/recipes/twin.py").write_bytes((project / "steps/recipes/sts.py").read_bytes())
    project.edit("recipes.twin", entry)
    said = project.evergreen("run", "all", HOME=str(home), TMPDIR=str(temporary)).stdout
    assert [said.count(f"{name}@1 (challenger), registered now") for name in ("sts", "twin")] == [1, 1]
    with sqlite3.connect(project / ".evergreen/mlflow.db") as store:
        times = {name: (start, last) for name, start, last in store.execute(
            "select e.name, r.start_time, max(m.timestamp) from runs r join experiments e using (experiment_id) "
            "join metrics m using (run_uuid) where m.key = 'train_loss' group by r.run_uuid")}
    assert times["twin"][0] < times["sts"][1] and times["sts"][0] < times["twin"][1]
    assert {path.name for path in home.iterdir()} <= {".cache"}
    assert list(temporary.iterdir()) == []
