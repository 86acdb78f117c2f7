"""The retraining flow: the stages of dvc.yaml in their order, registration, the verdict; the only import of prefect."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import get_run_context
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.futures import wait
from prefect.input import RunInput
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Failed, State
from prefect.utilities.urls import url_for

from flows import graph, promotion
from steps import history, params, register
from steps.schema import InputError

_slots = threading.BoundedSemaphore(1)      # stages at work at once: what the machine's cores allow


class Approval(RunInput):
    """What the server's page asks a person for."""

    promote: bool


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(name: str) -> str | State:
    """Brings one stage up to date and says whether it ran, was restored or had nothing to do."""
    logger = get_run_logger()
    try:
        with _slots:
            outcome = graph.reproduce(name, logger.info)
    except (InputError, graph.StageFailed) as error:
        return Failed(message=str(error), data=error)       # raised, it would be printed with a traceback
    logger.info(outcome)
    return outcome


@task(cache_policy=NO_CACHE, persist_result=False)
def register_model(recipe: str) -> dict:
    """Registers what the recipe's stages left; the same version when nothing changed."""
    version = register.register(recipe)
    get_run_logger().info("version %s %s", version.number, "registered" if version.created else "was there already")
    return {"version": version.number, "run_id": version.run_id, "created": version.created}


@task(cache_policy=NO_CACHE, persist_result=False)
def decide_on(recipe: str, number: int, approve: str | None) -> str | State:
    """The verdict on a version: promote, hold or reject by the rules of now. Returns its state."""
    for line in history.notice(recipe):
        get_run_logger().warning("%s", line)
    try:
        state = promotion.decide(f"{recipe}@{number}", approve)[1]
    except InputError as error:
        return Failed(message=str(error), data=error)
    get_run_logger().info("%s", promotion.text(recipe, number))
    return state


def confirm(recipe: str, number: int) -> None:
    """Pauses the flow until a person answers on the server's page, or the time is over; then the verdict is a hold."""
    hours = params.load().recipe(recipe).gate.approval.hours
    get_run_logger().info("waits %g hours for a person: %s", hours, url_for(get_run_context().flow_run))
    try:
        answer = "yes" if pause_flow_run(wait_for_input=Approval, timeout=round(3600 * hours)).promote else "no"
    except FlowPauseTimeout:
        answer = "lapsed"
    promotion.decide(f"{recipe}@{number}", answer)


@flow(name="retrain", persist_result=False)      # stored results are pickles
def retrain(recipes: list[str], approve: str | None = None, decide: bool = True) -> dict | State:
    """Every recipe's stages, siblings side by side, its registration and its verdict. Names the first failure."""
    try:
        stages = {}
        plan = graph.plan(params.load().targets(recipes))
        with graph.lock_in_order(plan):
            for stage in plan:
                stages[stage.name] = run_stage.with_options(name=stage.name, task_run_name=stage.name).submit(
                    stage.name, wait_for=[stages[u] for u in stage.upstream])
            wait([*stages.values()])    # a version holds the whole dvc.lock, so no stage may write it any more
        versions, verdicts = {}, {}
        order = [s.name.removeprefix("train@") for s in plan if s.name.startswith("train@")]
        for recipe in (r for r in order if r in recipes and stages[f"evaluate@{r}"].state.is_completed()):
            versions[recipe] = register_model.with_options(
                name=f"register@{recipe}", task_run_name=f"register@{recipe}").submit(recipe)
            versions[recipe].wait()     # a parent is registered before its children, whose versions name it
            if decide and versions[recipe].state.is_completed():
                number = versions[recipe].result()["version"]
                verdicts[recipe] = decide_on.with_options(
                    name=f"promote@{recipe}", task_run_name=f"promote@{recipe}").submit(recipe, number, approve)
                verdicts[recipe].wait()
        for recipe, verdict in verdicts.items():
            if verdict.state.is_completed() and verdict.result().startswith(promotion.WAITING) and on_a_server():
                confirm(recipe, versions[recipe].result()["version"])
        for future in (*stages.values(), *versions.values(), *verdicts.values()):
            if future.state.is_failed() or future.state.is_crashed():
                return future.state
        return {"stages": {name: future.result() for name, future in stages.items()},
                "versions": {recipe: future.result() for recipe, future in versions.items()}}
    except BaseException:     # Prefect waits for the threads of its tasks, and they for their stages
        graph.stop()
        raise


def on_a_server() -> bool:
    """Whether the run is recorded on a server that people look at, not on a temporary one."""
    return "PREFECT_API_URL" in os.environ


def run(recipes: list[str], approve: str | None, decide: bool, get_ready: Callable[[], None]) -> dict:
    """Runs the flow here: on the server of PREFECT_API_URL, or on a temporary one that ends with it.

    `get_ready` is called while the server starts, and is done when the flow begins.
    """
    global _slots
    _slots = threading.BoundedSemaphore(max(1, len(os.sched_getaffinity(0)) // params.load().threads))
    settings = {}
    with ThreadPoolExecutor(1) as beside:       # another core has time while the server starts
        ready = beside.submit(get_ready)
        if not PREFECT_API_URL.value():
            settings = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
            # A terminal sends Ctrl-C to all; the server inherits this mask and lives to hear how we ended.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                SubprocessASGIServer().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        ready.result()
    with temporary_settings(settings):
        return retrain(recipes, approve, decide)
