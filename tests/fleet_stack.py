"""A schedule on the whole stack: it trains on the GPU's worker, though PostgreSQL is killed meanwhile, registers,
promotes, tells, and has nothing to do then.

Minutes of waiting, so not among the tests that every change runs: `make fleet`.
"""

import shutil
from collections.abc import Iterator

import pytest

from tests.fleet import LENIENT
from tests.project import only_sts
from tests.running import Running, needs_postgresql, started_stack
from tests.waiting import until

pytestmark = needs_postgresql
EVERY = 20      # seconds


@pytest.fixture(scope="module")
def running(environment, receiver, tiny_model) -> Iterator[Running]:
    def small(project: Running) -> None:
        shutil.copytree(tiny_model, project / "tiny-bert")
        only_sts(project)
        project.edit("recipes.sts.schedule", {"interval": EVERY, "timezone": "UTC"})
        project.change(lambda values: values["recipes"]["sts"]["gate"].update(
            LENIENT | {"approval": {"policy": "auto", "hours": 1.0}}))

    with started_stack(environment, receiver, small) as found:
        yield found


def ended(running: Running) -> list[dict]:
    """The runs of retrain/sts that ended and were not cancelled, the first first."""
    return running.prefect("flow_runs/filter", {
        "deployments": {"name": {"any_": ["sts"]}}, "sort": "EXPECTED_START_TIME_ASC",
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}})


def restart_postgresql(running: Running) -> None:
    """In the middle of the training on the GPU's worker."""
    until(lambda: running.prefect("flow_runs/filter", {"deployments": {"name": {"any_": ["gpu"]}}, "flow_runs": {
        "state": {"type": {"any_": ["RUNNING"]}}}}), 300)
    running.part("postgres").leader().kill()
    assert "PostgreSQL: ready after" in running.up().stdout


def test_the_first_tick_trains_and_promotes_and_the_next_has_nothing_to_do(running, receiver):
    restart_postgresql(running)
    first, second = until(lambda: len(runs := ended(running)) > 1 and runs[:2], 420)
    assert first["state"]["type"] == "COMPLETED", first["state"]["message"]
    assert second["state"]["message"].startswith("unchanged: ") and "sts@1 (promoted)" in second["state"]["message"]
    print(f"trained in {first['total_run_time']:.0f} s, nothing to do in {second['total_run_time']:.0f} s")

    stage, = running.prefect("flow_runs/filter", {"deployments": {"name": {"any_": ["gpu"]}}})
    assert stage["name"].startswith("train@sts of ") and stage["state"]["message"] == "train@sts ran"
    page, = running.prefect("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [first["id"]]}}})
    for expected in ("| `train@sts` | ran on gpu |", "sts@1 against the base model: PROMOTE",
                     f"[sts@1](http://127.0.0.1:{running.ports()['mlflow']}/#/models/sts/versions/1)"):
        assert expected in page["data"]
    assert [text.partition(":")[0] for text in receiver.told] == ["sts@1 against the base model"]

    said = running.run("bash", "-c", ". .stack/env && evergreen history sts").stdout
    assert "promote" in said and "sts@1" in said
    assert list((running / ".stack/mlflow/artifacts").rglob("model.safetensors"))
    assert list((running / ".stack/sftp/store/files/md5").rglob("*")) and not (running / "models").exists()
    assert not (running / ".stack/workers/gpu/evaluation/sts/test").exists()
