"""A promotion that waits for a person: asked on a run's page, answered there or elsewhere, or lapsed.

https://docs.prefect.io/v3/advanced/interactive
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from prefect import get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import StateType
from prefect.context import get_run_context
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed, Scheduled
from prefect.utilities.urls import url_for

from flows import promotion, server
from steps import params

GRACE = 3600        # seconds after the time to answer, in which our run ends the one that waits; then the server does


class Approval(RunInput):
    """What the server's page asks a person for."""

    promote: bool


def ask(recipe: str, number: int) -> str:
    """Asks a person on the run's page, and returns the state of the verdict after the answer.

    The run of a deployment is suspended: its process ends, and another goes on with `asked` when there is an answer.
    For when there is none, a run is scheduled that writes down that the promotion lapsed. Another run is paused.
    """
    hours, key = params.load().recipe(recipe).gate.approval.hours, f"{recipe}-{number}"
    want = {"wait_for_input": Approval, "key": key}
    try:
        if not runtime.deployment.id:
            say_where(hours)
            answer = pause_flow_run(timeout=round(3600 * hours), **want)
        else:
            if recipe not in asked([recipe]):
                say_where(hours)
                look_again(recipe, datetime.now(UTC) + timedelta(hours=hours))
            answer = suspend_flow_run(timeout=round(3600 * hours) + GRACE, **want)
        said = "yes" if answer.promote else "no"
    except FlowPauseTimeout:
        said = promotion.LAPSED
    return promotion.decide(f"{recipe}@{number}", said)[1]


def look_again(recipe: str, at: datetime) -> None:
    """Schedules a run that trains nothing and writes down what lapsed."""
    with get_client(sync_client=True) as client:
        server.patiently(lambda: client.create_flow_run_from_deployment(
            runtime.deployment.id, parameters={"recipes": [recipe], "approve": promotion.LAPSED},
            state=Scheduled(scheduled_time=at), idempotency_key=f"{runtime.flow_run.id}-{recipe}", tags=[server.TAG]))


def say_where(hours: float) -> None:
    get_run_logger().info("waits %g hours for a person: %s", hours, url_for(get_run_context().flow_run))


def asked(recipes: Iterable[str]) -> dict[str, int]:
    """{recipe: version} that this run has asked about, where it was suspended and goes on."""
    return of_keys(get_run_context().flow_run, recipes)


def of_keys(run, recipes: Iterable[str]) -> dict[str, int]:
    keys = (key.rpartition("-") for key in run.empirical_policy.pause_keys or ())
    return {recipe: int(number) for recipe, _, number in keys if recipe in recipes}


def close(recipes: Iterable[str]) -> list[str]:
    """Writes down what nobody confirmed in time, and ends the runs that wait for what is decided; returns the lapsed.

    Such a decision is also a person's at a terminal: evergreen promote sts@3 --yes.
    """
    lapsed = [promotion.text(recipe, number) for recipe in recipes for number in promotion.lapse(recipe)]
    with server.connected() as client:
        for run in client.read_flow_runs(
                flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=[server.RETRAIN])),
                flow_run_filter=filters.FlowRunFilter(state=filters.FlowRunFilterState(
                    type=filters.FlowRunFilterStateType(any_=[StateType.PAUSED])))):
            states = {f"{recipe}@{number}": promotion.state(recipe, number)
                      for recipe, number in of_keys(run, recipes).items()}
            if states and not any(state.startswith(promotion.WAITING) for state in states.values()):
                said = ", ".join(f"{name} ({state})" for name, state in states.items())
                client.set_flow_run_state(run.id, Completed(message=f"nothing waits any more: {said}"), force=True)
    return lapsed
