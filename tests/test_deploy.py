"""`evergreen deploy` on a real server: what it makes, changes, keeps and gives up."""

import sys
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.fleet import Fleet

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


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, tiny_model, environment):
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), tiny_model, environment)
    try:
        fleet.first = fleet.head.evergreen("deploy").stdout
        yield fleet
    finally:
        fleet.close()


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
    """A run and its task that say Running, and a run that a worker took and never started.

    The server's clock, as its answers say it, lags by some seconds where the machine is busy.
    """
    flow = fleet.ask("/deployments/name/retrain/sts")["flow_id"]
    run = fleet.ask("/flow_runs/", flow_id=flow, name="dead", state={"type": "RUNNING"})["id"]
    fleet.ask("/task_runs/", flow_run_id=run, name="train@sts", task_key="a", dynamic_key="0",
              state={"type": "RUNNING"})
    taken = fleet.ask("/flow_runs/", flow_id=flow, name="taken", state={"type": "PENDING"})["id"]
    said = fleet.head.run(sys.executable, "-c", "from datetime import timedelta; from flows import lease; "
                          "lease.LEASE = lease.START = timedelta(seconds=-9); print(*lease.sweep())").stdout
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
