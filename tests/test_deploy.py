"""`evergreen deploy` on a real server, and a scheduled run whose training is another clone's, approved by a person."""

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from steps import params
from tests.fleet import Fleet
from tests.project import digests

AHEAD = """
import datetime as clock
from flows import lease

class Ahead(clock.datetime):
    @classmethod
    def now(cls, zone=None):
        return super().now(zone) + clock.timedelta(hours=1)

lease.datetime = Ahead
print(*lease.sweep())
"""

ATTEMPT = "from steps import attempts, tracking; print(attempts.newest(tracking.client(), 'sts'))"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, tiny_model, environment):
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), tiny_model, environment)
    try:
        fleet.first = fleet.head.evergreen("deploy").stdout
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


@pytest.mark.parametrize("url, said", [
    ("", "PREFECT_API_URL is not set"), ("http://127.0.0.1:9/api", "does not answer"), ("{}/nothing", "answers 404")])
def test_a_server_that_is_not_there_is_named(fleet, url, said):
    done = fleet.head.evergreen("deploy", check=False, PREFECT_API_URL=url.format(fleet.api))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and "Traceback" not in done.stderr


def test_deploying_makes_pools_deployments_and_automations(fleet):
    assert fleet.first.splitlines() == [
        "work pool cpu: made (process)",
        "work pool gpu: made (process)",
        "deployment retrain/sts: 0 2 * * * (Europe/Paris) on cpu",
        "deployment stage/gpu: stages that run on gpu",
        "automation evergreen: lost: after 75 s",
        "automation evergreen: not started: after 2100 s"]
    made = fleet.deployments()["sts"]
    (when,) = made["schedules"]
    assert (when["schedule"]["cron"], when["schedule"]["timezone"]) == ("0 2 * * *", "Europe/Paris")
    assert made["global_concurrency_limit"]["limit"] == 1
    assert made["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_deploying_again_changes_and_removes_what_the_project_has_no_more(fleet):
    """A recipe without a schedule can be run by hand; one that is gone has no deployment."""
    head = fleet.head
    before, values = {name: found["id"] for name, found in fleet.deployments().items()}, head / "params.yaml"
    text = values.read_text()
    try:
        head.change(lambda v: v["recipes"]["sts"].update(schedule={"interval": 3600, "timezone": "UTC"}))
        (head / "steps/recipes/more.py").write_text((head / "steps/recipes/sts.py").read_text())
        head.change(lambda v: v["recipes"].update(more={k: w for k, w in v["recipes"]["sts"].items()
                                                        if k != "schedule"}))
        said = head.evergreen("deploy").stdout
        assert "work pool cpu: there" in said
        assert "deployment retrain/more: by hand, no schedule" in said
        assert "deployment retrain/sts: every 3600 s (UTC) on cpu" in said
        assert fleet.deployments()["sts"]["id"] == before["sts"]
        assert fleet.deployments()["more"]["schedules"] == []
    finally:
        values.write_text(text)
        (head / "steps/recipes/more.py").unlink(missing_ok=True)
    said = head.evergreen("deploy").stdout
    assert "deployment retrain/more: removed, for the project has no such recipe any more" in said
    assert {name: found["id"] for name, found in fleet.deployments().items()} == before
    assert [s["schedule"].get("cron") for s in fleet.deployments()["sts"]["schedules"]] == ["0 2 * * *"]
    assert len(fleet.ask("/automations/filter", limit=50)) == 2


def test_a_schedule_that_was_paused_on_the_page_stays_paused(fleet):
    (made,) = fleet.deployments()["sts"]["schedules"]
    pause = ("from flows import server\nwith server.connected() as client:\n    client._client.patch("
             f"'/deployments/{fleet.deployments()['sts']['id']}/schedules/{made['id']}', json={{'active': %s}})")
    fleet.head.run(sys.executable, "-c", pause % False)
    assert "retrain/sts: 0 2 * * * (Europe/Paris) on cpu, paused on the server's page" in fleet.head.evergreen(
        "deploy").stdout
    (now,) = fleet.deployments()["sts"]["schedules"]
    assert now["active"] is False
    fleet.head.run(sys.executable, "-c", (pause % True).replace(made["id"], now["id"]))
    assert "paused" not in fleet.head.evergreen("deploy").stdout


def test_a_time_that_no_clock_shows_is_named_and_nothing_deployed(fleet):
    before, values = fleet.deployments()["sts"], fleet.head / "params.yaml"
    text = values.read_text()
    fleet.head.edit("recipes.sts.schedule", {"cron": "61 2 * * *", "timezone": "UTC"})
    done = fleet.head.evergreen("deploy", check=False)
    values.write_text(text)
    assert (done.returncode, done.stdout) == (2, "")
    assert "recipes.sts.schedule.cron is '61 2 * * *': Invalid cron string" in done.stderr
    assert fleet.deployments()["sts"]["updated"] == before["updated"]


def test_a_worker_of_an_unknown_pool_is_refused(fleet):
    done = fleet.head.evergreen("worker", "tpu", check=False)
    assert done.returncode == 2
    assert "no work pool 'tpu'; it has: cpu, gpu" in done.stderr


@pytest.mark.fault(15)
def test_what_died_before_there_was_a_server_to_notice_is_swept(fleet):
    """A run and its task that say Running, and a run that a worker took and never started."""
    flow = fleet.ask("/deployments/name/retrain/sts")["flow_id"]
    run = fleet.ask("/flow_runs/", flow_id=flow, name="dead", state={"type": "RUNNING"})["id"]
    fleet.ask("/task_runs/", flow_run_id=run, name="train@sts", task_key="a", dynamic_key="0",
              state={"type": "RUNNING"})
    taken = fleet.ask("/flow_runs/", flow_id=flow, name="taken", state={"type": "PENDING"})["id"]
    said = fleet.head.run(sys.executable, "-c", "from datetime import timedelta; from flows import lease; "
                          "lease.LEASE = lease.START = timedelta(0); print(*lease.sweep())").stdout
    assert "run dead: given up, no sign of life since" in said and "task train@sts: given up" in said
    assert (fleet.state(run)["type"], fleet.tasks(run)) == ("CRASHED", {"train@sts": "CRASHED"})
    assert "run taken: given up" in said and fleet.state(taken)["type"] == "CRASHED"


@pytest.mark.fault(29)
def test_a_clock_that_is_an_hour_ahead_gives_no_living_run_up(fleet):
    flow = fleet.ask("/deployments/name/retrain/sts")["flow_id"]
    run = fleet.ask("/flow_runs/", flow_id=flow, name="alive", state={"type": "RUNNING"})["id"]
    fleet.head.run(sys.executable, "-c", AHEAD)
    assert fleet.state(run)["type"] == "RUNNING"
    fleet.ask(f"/flow_runs/{run}/set_state", state={"type": "CRASHED"}, force=True)


@pytest.mark.fault(29)
def test_a_server_whose_clock_jumps_over_a_tick_starts_every_tick_once(fleet):
    """An hour ahead and back, as its scheduler then asks for the next ones; nobody works on what is scheduled."""
    (ours,) = fleet.deployments()["sts"]["schedules"]
    made = fleet.ask("/deployments/", name="clock", flow_id=fleet.ask("/flows/", name="clock")["id"],
                     schedules=[{key: ours[key] for key in ("schedule", "slug", "active")}])["id"]
    now = datetime.now(ZoneInfo("Europe/Paris"))
    tick = (now + timedelta(days=1)).replace(hour=2, minute=0, second=0, microsecond=0)
    for minutes in (-30, 30, -30, 30):
        fleet.ask(f"/deployments/{made}/schedule", start_time=(tick + timedelta(minutes=minutes)).isoformat(),
                  min_runs=3, max_runs=3)
    runs = fleet.ask("/flow_runs/filter", deployments={"id": {"any_": [made]}}, limit=50)
    starts = [datetime.fromisoformat(run["expected_start_time"]) for run in runs]
    ticks = {tick + timedelta(days=days) for days in range(4)}
    assert len(starts) == len(set(starts)) and ticks <= set(starts)


@pytest.mark.fault(16)
def test_a_run_that_was_given_up_may_not_register(fleet):
    flow = fleet.ask("/deployments/name/retrain/sts")["flow_id"]
    run = fleet.ask("/flow_runs/", flow_id=flow, name="cut off", state={"type": "RUNNING"})["id"]
    look = (sys.executable, "-c", f"from flows import lease; lease.check_lease('{run}')")
    fleet.head.run(*look)
    fleet.ask(f"/flow_runs/{run}/set_state", state={"type": "CRASHED", "message": "no heartbeat"}, force=True)
    assert "InputError: the server has given this run up (Crashed: no heartbeat)" in fleet.head.run(
        *look, check=False).stderr


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
