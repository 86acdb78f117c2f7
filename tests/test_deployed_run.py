"""A run of a deployment, whose training is another clone's: its page, its verdict, a person's answer, no second run."""

import json
import re
import sys
from datetime import UTC, datetime, timedelta

import pytest

from steps import params
from tests.fleet import Fleet
from tests.project import digests

ATTEMPT = "from steps import attempts, tracking; print(attempts.newest(tracking.client(), 'sts'))"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, tiny_model, environment):
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), tiny_model, environment)
    try:
        fleet.head.evergreen("deploy")
        fleet.start_workers()
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(scope="module")
def asked(fleet) -> str:
    """The id of a run that has trained and waits for a person."""
    run = fleet.begin()
    assert fleet.until(run, "PAUSED", "FAILED", "CRASHED", "COMPLETED")["name"] == "Suspended", fleet.logs(run)
    return run

def test_training_is_the_workers_and_dvc_lock_that_of_a_local_run(fleet, asked, finished):
    there = fleet.stage_run("train@sts")
    assert fleet.state(there)["message"] == "train@sts ran"
    assert re.search(r"epoch +train loss +dev loss", fleet.logs(there))
    assert "train@sts" not in [t for t, state in fleet.tasks(asked).items() if state != "COMPLETED"]
    assert "epoch  " not in fleet.logs(asked)
    assert (fleet.head / "dvc.lock").read_bytes() == (finished / "dvc.lock").read_bytes()
    assert digests(fleet.head.folder) == digests(finished.folder)


def test_the_runs_page_shows_stages_scores_and_verdict(fleet, asked):
    (page,) = fleet.ask("/artifacts/filter", artifacts={"flow_run_id": {"any_": [asked]}})
    score = json.loads((fleet.head / "evaluation/sts/test/metrics.json").read_text())["spearman_cosine"]["model"]
    for expected in ("## sts@1", "| `train@sts` | ran on gpu |", "| `prepare@sts` | ran |",
                     f"| new model | {score:.4f} |", "sts@1 against the base model: PROMOTE"):
        assert expected in page["data"]


def test_a_promotion_that_nobody_confirms_lapses_and_its_run_ends(fleet, asked):
    """The run that was scheduled for the end of the time to answer comes early, when the time is shorter."""
    fleet.poll(lambda: not fleet.processes("prefect.engine"), 30)
    (last,) = (run for run in fleet.ask("/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
               if run["parameters"].get("approve") == "lapsed")
    hour = datetime.fromisoformat(last["expected_start_time"]) - datetime.now(UTC)
    assert timedelta(minutes=50) < hour < timedelta(hours=1)
    fleet.head.change(lambda v: v["recipes"]["sts"]["gate"]["approval"].update(hours=1e-6))
    fleet.ask(f"/flow_runs/{last['id']}/set_state", state={"type": "SCHEDULED"}, force=True)
    ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    assert fleet.until(last["id"], *ends)["message"] == "1 decided; nothing was trained", fleet.logs(last["id"])
    assert fleet.until(asked, *ends)["message"] == "nothing waits any more: sts@1 (lapsed)"
    assert "nobody confirmed within 1e-06 hours" in fleet.head.evergreen("history", "sts").stdout


@pytest.fixture(scope="module")
def confirmed(fleet, interrupted) -> str:
    """The id of a run that trained nothing, judged by rules that are others now, was suspended and got an answer."""
    fleet.head.change(lambda v: v["recipes"]["sts"]["gate"].update(
        min_rows=2, approval={"policy": "ask", "hours": 1.0}))
    run = fleet.begin()
    assert fleet.until(run, "PAUSED", "FAILED", "CRASHED", "COMPLETED")["name"] == "Suspended", fleet.logs(run)
    fleet.poll(lambda: not fleet.processes("prefect.engine"), 30)
    fleet.ask(f"/flow_runs/{run}/resume", run_input={"promote": True})
    return run


@pytest.fixture(scope="module")
def interrupted(fleet, asked) -> str:
    """The id of a run whose answer came while another of the same recipe was at work, so that the server cancelled it.

    Here it is put there by hand: the answer is stored, and the run cancelled, as the server does it.
    """
    fleet.head.change(lambda v: v["recipes"]["sts"]["gate"].update(
        min_rows=3, approval={"policy": "ask", "hours": 1.0}))
    run = fleet.begin()
    assert fleet.until(run, "PAUSED", "FAILED", "CRASHED", "COMPLETED")["name"] == "Suspended", fleet.logs(run)
    fleet.ask(f"/flow_runs/{run}/input", key="suspended-sts-1-response", value='{"promote": false}')
    fleet.ask(f"/flow_runs/{run}/set_state", state={"type": "CANCELLED"}, force=True)
    return run


def test_an_answer_to_a_run_that_was_cancelled_is_heard_by_the_next(fleet, interrupted):
    run = fleet.begin()
    end = fleet.until(run, "COMPLETED", "FAILED", "CRASHED", "PAUSED")
    assert end["message"].startswith("unchanged: ") and end["message"].endswith("sts@1 (refused)"), fleet.logs(run)
    assert "a person refused" in fleet.head.evergreen("history", "sts").stdout


def test_a_suspended_run_keeps_no_process_and_goes_on_with_the_answer(fleet, confirmed):
    end = fleet.until(confirmed, "COMPLETED", "FAILED", "CRASHED")
    assert (end["type"], end["message"]) == ("COMPLETED", "sts@1 (promoted)"), fleet.logs(confirmed)
    assert "sts@1 is the champion" in fleet.head.evergreen("promote", "sts").stdout
    (page,) = fleet.ask("/artifacts/filter", artifacts={"flow_run_id": {"any_": [confirmed]}})
    assert "aliases: challenger, champion" in page["data"] and "| `train@sts` | unchanged |" in page["data"]


def test_what_is_unchanged_is_not_run(fleet, confirmed):
    """The workers may have been told of one run twice: of two at once the second is cancelled by the server."""
    before = len(fleet.ask("/flow_runs/filter", flow_runs={"name": {"like_": "train@sts"}}))
    attempt = fleet.head.run(sys.executable, "-c", ATTEMPT).stdout
    runs = [fleet.begin() for _ in range(3)]
    ends = [fleet.until(run, "COMPLETED", "CANCELLED", "FAILED", "CRASHED") for run in runs]
    assert sorted(end["type"] for end in ends) == ["CANCELLED", "CANCELLED", "COMPLETED"]
    (done,) = (end for end in ends if end["type"] == "COMPLETED")
    assert done["message"].startswith("unchanged: ") and "nothing was trained; sts@1 (promoted)" in done["message"]
    assert len(fleet.ask("/flow_runs/filter", flow_runs={"name": {"like_": "train@sts"}})) == before
    assert attempt == fleet.head.run(sys.executable, "-c", ATTEMPT).stdout      # it overtakes nobody who trains


def test_a_verdict_of_which_a_killed_run_did_not_tell_is_told_by_the_next_once(fleet, confirmed):
    def told() -> int:
        return fleet.ask("/events/filter", filter={"event": {"name": ["evergreen.verdict"]}})["total"]

    before = told()
    fleet.head.run(sys.executable, "-c", "from flows import waiting; waiting.owe('sts', 1)")
    for _ in range(2):
        assert fleet.until(fleet.begin(), "COMPLETED", "FAILED", "CRASHED")["type"] == "COMPLETED"
        fleet.poll(lambda: told() > before, 30)
    assert told() == before + 1


def test_drift_starts_one_retraining_that_promotes_nothing(fleet, confirmed):
    sample = fleet.folder / "sample.txt"
    sample.write_text("washer washer washer washer\n" * 120)
    said = fleet.head.evergreen("drift", "sts", str(sample), "--start").stdout
    name = re.search(r"retraining: (\S+); it promotes nothing", said)[1]
    (run,) = fleet.ask("/flow_runs/filter", flow_runs={"name": {"any_": [name]}})
    assert run["parameters"] == {"recipes": ["sts"], "decide": False} and "drift" in run["tags"]
    assert f"no retraining: drift started {name} less than 24 hours ago" in fleet.head.evergreen(
        "drift", "sts", str(sample), "--start").stdout
    assert fleet.until(run["id"], "COMPLETED", "FAILED", "CRASHED")["message"].endswith("nothing was trained; sts@1")


def test_a_clone_with_changes_or_at_another_commit_is_refused_by_name(fleet, asked):
    """Neither clone trains: the one in charge, then the worker."""
    head, gpu = fleet.head, fleet.gpu
    head.edit("seed", 7)
    run = fleet.begin()
    assert fleet.until(run, "COMPLETED", "FAILED", "CRASHED")["type"] == "FAILED"
    assert "tracked files differ from the last commit: params.yaml" in fleet.state(run)["message"]
    head.git("commit", "-qam", "Other seed")
    run = fleet.begin()
    assert fleet.until(run, "COMPLETED", "FAILED", "CRASHED")["type"] == "FAILED"
    here, there = (clone.git("rev-parse", "HEAD").stdout.strip() for clone in (gpu, head))
    assert f"this clone stands at commit {here}, the caller at {there}" in fleet.state(run)["message"]
    assert params.read(gpu / "dvc.lock")["stages"]["train@sts"]["params"]["params.yaml"]["seed"] == 42


def test_a_stage_that_no_worker_takes_is_given_up_by_name(fleet):
    code = """
from types import SimpleNamespace
from flows import deploy, server, stages
stages.NOBODY = 3.0
with server.connected() as client:
    deploy.work_pool(client, "empty")
    deploy.one_stage(client, "empty")
stages.on_pool(SimpleNamespace(name="train@sts", work_pool="empty"), {
    "stage": "train@sts", "commit": "", "params_sha256": "", "upstream": {}}, print)
"""
    done = fleet.head.run(sys.executable, "-c", code, check=False)
    assert "the work pool empty has no worker or is paused; start one in a clone of its own: " in done.stdout
    assert "StageFailed: train@sts: the work pool empty had no worker for 0.05 minutes, or was paused; " in done.stderr
    assert fleet.state(fleet.stage_run("train@sts of None"))["type"] == "CANCELLED"
