"""Workers, flows and the server killed, a run that was given up and lives, a cancelled run: `make fleet`.

Minutes of waiting, so not among the tests that every change runs.
"""

import signal
import time

import pytest

from tests.fleet import Fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, tiny_model, environment):
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), tiny_model, environment)
    try:
        fleet.head.change(lambda values: values.update(checkpoint_seconds=0))
        fleet.head.change(lambda values: values["recipes"]["sts"]["gate"].update(
            approval={"policy": "auto", "hours": 1.0}))
        fleet.commit("Checkpoints at once, no approval")
        fleet.head.evergreen("deploy")
        fleet.start_workers()
        yield fleet
    finally:
        fleet.close()


def train_for_hours(fleet: Fleet, epochs: int) -> None:
    fleet.head.change(lambda values: values["recipes"]["sts"]["train"].update(epochs=epochs, patience=epochs))
    fleet.commit(f"{epochs} epochs")


def training(fleet: Fleet) -> str:
    """A new run, once there is a checkpoint of it, beside those of a run before; its id."""
    def checkpoints() -> set[float]:
        return {path.stat().st_mtime for path in (fleet.gpu / ".evergreen/checkpoints/sts").glob("*/*/manifest.json")}

    before = checkpoints()
    run = fleet.begin()
    fleet.poll(lambda: checkpoints() - before, 180)
    return run


@pytest.fixture(autouse=True)
def nothing_goes_on(fleet):
    """A test that fails leaves no training to the next."""
    yield
    for run in fleet.ask("/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}):
        fleet.ask(f"/flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})
    fleet.poll(lambda: not fleet.processes("steps."), 30)


@pytest.mark.fault(14)
def test_workers_and_flows_killed_together_are_given_up_and_the_next_run_resumes(fleet):
    train_for_hours(fleet, 50_000)
    run = training(fleet)
    stage = fleet.stage_run("train@sts")
    fleet.kill("cpu", "gpu")
    killed = time.monotonic()
    assert not fleet.processes("steps.train") and not fleet.processes("prefect.engine")
    for each in (run, stage):
        assert fleet.until(each, "CRASHED", seconds=150)["message"].startswith("no heartbeat")
    print(f"given up after {time.monotonic() - killed:.0f} s")
    assert time.monotonic() - killed < 120
    assert fleet.ask("/deployments/name/retrain/sts")["global_concurrency_limit"]["active_slots"] == 0

    fleet.start_workers()
    again = fleet.begin()
    following = fleet.poll(lambda: (new := fleet.stage_run("train@sts")) != stage and new, 120)
    fleet.poll(lambda: "continues from the checkpoint of step" in fleet.logs(following), 90)
    assert "RUNNING" not in fleet.tasks(run).values() and "RUNNING" not in fleet.tasks(stage).values()
    said = [fleet.logs(again), *(log.read_text() for log in fleet.folder.glob("*.log"))]     # whoever started first
    assert any("train@sts: given up, for its run has ended" in text for text in said)
    end_by_hand(fleet, again)


@pytest.mark.fault(14)
def test_a_training_whose_worker_alone_is_lost_goes_on_in_the_same_run(fleet):
    train_for_hours(fleet, 55_000)
    run = training(fleet)
    stage = fleet.stage_run("train@sts")
    fleet.kill("gpu")
    fleet.start_workers("gpu")
    assert fleet.until(stage, "CRASHED", seconds=150)["message"].startswith("no heartbeat")
    following = fleet.poll(lambda: (new := fleet.stage_run("train@sts")) != stage and new, 60)
    fleet.poll(lambda: "continues from the checkpoint of step" in fleet.logs(following), 120)
    assert fleet.state(run)["type"] == "RUNNING" and "the worker was lost (no heartbeat" in fleet.logs(run)
    end_by_hand(fleet, run)


def test_cancelling_ends_the_training_elsewhere_within_15_s(fleet):
    train_for_hours(fleet, 60_000)
    run = training(fleet)
    stage = fleet.stage_run("train@sts")
    began = end_by_hand(fleet, run)
    print(f"no process after {time.monotonic() - began:.0f} s")
    assert fleet.until(stage, "CANCELLED")["type"] == "CANCELLED"


def end_by_hand(fleet: Fleet, run: str) -> float:
    began = time.monotonic()
    fleet.ask(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    fleet.poll(lambda: not fleet.processes("steps."), 15)
    fleet.poll(lambda: not fleet.processes("prefect.engine"), 30)
    fleet.until(run, "CANCELLED", seconds=60)
    return began


@pytest.mark.fault(16)
def test_a_run_that_was_given_up_and_lives_registers_nothing(fleet):
    """The training is stopped while the server takes its run for dead, as one that is cut off looks."""
    train_for_hours(fleet, 300)
    run = training(fleet)
    (step,) = fleet.processes("steps.train")
    step.send_signal(signal.SIGSTOP)
    fleet.ask(f"/flow_runs/{run}/set_state", state={"type": "CRASHED", "message": "no heartbeat"}, force=True)
    step.send_signal(signal.SIGCONT)
    fleet.poll(lambda: "register@sts" in fleet.tasks(run), 300)
    fleet.poll(lambda: not fleet.processes("prefect.engine"), 60)
    assert fleet.tasks(run)["evaluate@sts"] == "COMPLETED"
    assert fleet.tasks(run)["register@sts"] == "FAILED"
    assert "'sts' is registered" not in fleet.head.evergreen("history", "sts", check=False).stdout
    assert fleet.head.evergreen("explain", "sts@1", check=False).returncode == 2

    after = fleet.begin()
    assert fleet.until(after, "COMPLETED", "FAILED", "CRASHED")["type"] == "COMPLETED", fleet.logs(after)
    assert fleet.head.evergreen("explain", "sts@1").returncode == 0


@pytest.mark.fault(17)
def test_a_server_that_is_killed_for_30_s_loses_nothing(fleet):
    train_for_hours(fleet, 500)
    run = training(fleet)
    fleet.kill("server")
    time.sleep(30)
    fleet.start_server()
    assert fleet.until(run, "COMPLETED", "FAILED", "CRASHED", seconds=300)["type"] == "COMPLETED", fleet.logs(run)
    tasks = fleet.tasks(run)
    assert set(tasks.values()) == {"COMPLETED"}
    assert {"import_dataset@appliances", "import_model@tiny", "prepare@sts", "train@sts", "evaluate@sts",
            "register@sts", "promote@sts"} <= set(tasks)


@pytest.mark.fault(13)
def test_ticks_that_fall_into_a_run_and_a_backlog_are_one_run(fleet):
    """An interval of seconds: nothing is done twice while a run goes on, and after a time without a worker one runs."""
    fleet.kill("cpu")
    fleet.head.change(lambda values: values["recipes"]["sts"].update(schedule={"interval": 5, "timezone": "UTC"}))
    fleet.commit("Every 5 s")
    fleet.head.evergreen("deploy")
    sts = fleet.ask("/deployments/name/retrain/sts")["id"]

    def runs(*types: str) -> list[dict]:
        return fleet.ask("/flow_runs/filter", deployments={"id": {"any_": [sts]}}, flow_runs={
            "state": {"type": {"any_": list(types)}}}, sort="EXPECTED_START_TIME_ASC", limit=200)

    def late() -> set[str]:
        return {run["id"] for run in runs("SCHEDULED") if run["state"]["name"] == "Late"}

    fleet.poll(lambda: len(late()) >= 4, 120)
    backlog, done = late(), len(runs("COMPLETED"))
    fleet.start_workers("cpu")

    def ends() -> list[str]:
        return [run["state"]["type"] for run in runs("COMPLETED", "CANCELLED") if run["id"] in backlog]

    fleet.poll(lambda: len(ends()) == len(backlog) and len(runs("COMPLETED")) > done, 120)
    assert ends().count("COMPLETED") <= 1       # none where a tick that came as the worker started was before them
