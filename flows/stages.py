"""One stage of dvc.yaml, brought up to date here or on a work pool; and the flow by which a worker makes one."""

import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import WorkPoolStatus
from prefect.deployments import run_deployment
from prefect.states import Cancelled, Cancelling, Completed, Failed, State
from prefect.utilities.urls import url_for

from flows import graph, preflight, processes, remote, server
from flows.processes import StageFailed
from steps import command, params
from steps.schema import InputError

TURN = 86_400.0                     # seconds that a run waits for its turn in a folder
POLL = 1.0                          # seconds between looks at a stage elsewhere
NOBODY = 1800.0                     # seconds without a worker after which a stage elsewhere is given up
_slots = threading.BoundedSemaphore(1)      # stages at work at once: what the machine's cores allow


def set_slots(project: params.Project) -> None:
    global _slots
    _slots = threading.BoundedSemaphore(max(1, len(os.sched_getaffinity(0)) // project.threads))


def turn() -> AbstractContextManager:
    """A run of a server waits until nobody else works in this folder."""
    return command.only_one(processes.CLONE, "this folder", TURN)


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(name: str, order: graph.Stage | None = None) -> str | State:
    """Brings one stage up to date and says whether it ran, was restored or had nothing to do.

    With an `order` it runs on the work pool that this names.
    """
    logger = get_run_logger()
    try:
        if order:
            outcome = elsewhere(order, logger.info)
        else:
            with _slots:
                preflight.before(name)
                outcome = graph.reproduce(name, logger.info)
    except (InputError, StageFailed) as error:
        return Failed(message=str(error), data=error)       # raised, it would be printed with a traceback
    logger.info(outcome)
    return outcome


def elsewhere(stage: graph.Stage, on_line: Callable[[str], None]) -> str:
    """Lets a worker of the stage's pool make it, unless somebody has, and restores it here.

    A worker that is lost has one more try, which continues from its checkpoint where it is the same machine.
    """
    if known := remote.bring_back(stage.name, on_line):
        return known
    order = remote.order(stage, on_line)
    for last in (False, True):
        state = on_pool(stage, order, on_line)
        if state.is_completed():
            break
        if last or not state.is_crashed():
            raise StageFailed(f"{stage.name} on the work pool {stage.work_pool}: {state.name}: {state.message}")
        on_line(f"the worker was lost ({state.message}); once more")
    for wait in (*graph.AWAY, None):
        if remote.bring_back(stage.name, on_line):
            return f"ran on {stage.work_pool}"
        if wait is None or processes.pause(wait):
            raise StageFailed(f"{stage.name} was made on {stage.work_pool} and cannot be restored here; see that both "
                              "clones have the same default DVC remote")
        on_line(f"{stage.name} is not at the DVC remote; looked for once more after {wait:g} s")


def on_pool(stage: graph.Stage, order: dict, on_line: Callable[[str], None]) -> State:
    """The state in which the run of the stage's flow ended on its work pool; where this run is stopped, so is that."""
    once = uuid.uuid4().hex     # the server makes one run of it, however often it is asked
    child = server.patiently(lambda: run_deployment(
        f"{server.STAGE}/{stage.work_pool}", parameters=order, timeout=0, idempotency_key=once,
        flow_run_name=f"{stage.name} of {runtime.flow_run.name}"))
    on_line(f"on the work pool {stage.work_pool}: {url_for(child) or child.name}")
    lonely = None           # since when nobody could take it
    with get_client(sync_client=True) as client:
        while True:
            state = server.patiently(lambda: client.read_flow_run(child.id)).state
            if state.is_final():
                return state
            if processes.stopped():
                client.set_flow_run_state(child.id, Cancelling())
                raise StageFailed(f"{stage.name} was stopped")
            if not state.is_scheduled() or server.patiently(
                    lambda: client.read_work_pool(stage.work_pool)).status == WorkPoolStatus.READY:
                lonely = None
            elif lonely is None:
                lonely = time.monotonic()
                on_line(f"the work pool {stage.work_pool} has no worker or is paused; start one in a clone of its own: "
                        f"evergreen worker {stage.work_pool}")
            elif time.monotonic() - lonely > NOBODY:
                client.set_flow_run_state(child.id, Cancelled(message="no worker took it"), force=True)
                raise StageFailed(f"{stage.name}: the work pool {stage.work_pool} had no worker for {NOBODY / 60:g} "
                                  f"minutes, or was paused; start one: evergreen worker {stage.work_pool}")
            time.sleep(POLL)


@flow(name=server.STAGE, persist_result=False)
def stage(stage: str, commit: str, params_sha256: str, upstream: dict) -> State:
    """One stage, for the machine in charge of another clone; what it makes goes to the DVC remote."""
    try:
        with turn():
            graph.mend()
            outcome = remote.carry_out(stage, commit, params_sha256, upstream, get_run_logger().info)
    except (InputError, StageFailed) as error:
        return Failed(message=str(error))
    return Completed(message=f"{stage} {outcome}")
