"""A promotion that waits for a person: asked on a run's page, answered there or elsewhere, or lapsed.

https://docs.prefect.io/v3/advanced/interactive
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from prefect import get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import get_run_context
from prefect.exceptions import FlowPauseTimeout, ObjectNotFound
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput, keyset_from_base_key, read_flow_run_input
from prefect.states import Completed, Scheduled
from prefect.utilities.urls import url_for

from flows import promotion, server, waiting
from steps import params, verdicts
from steps.schema import InputError

BACKSTOP = 7 * 86_400       # seconds after the time to answer, when the server itself fails a run that still waits


class Approval(RunInput):
    """What the server's page asks a person for."""

    promote: bool


def ask(recipe: str, number: int) -> None:
    """Asks a person on the run's page, and decides by the answer.

    The run of a deployment is suspended: its process ends, and another goes on with `asked` when there is an answer.
    For when there is none, a run is scheduled that writes down what lapsed. Another run is paused.
    """
    hours, key = params.load().recipe(recipe).gate.approval.hours, f"{recipe}-{number}"
    want = {"wait_for_input": Approval, "key": key}
    try:
        if not runtime.deployment.id:
            say_where(hours)
            waiting.mark_asked(recipe, number)
            answer = pause_flow_run(timeout=round(3600 * hours), **want)
        else:
            if recipe not in asked():
                say_where(hours)
                look_again(recipe, datetime.now(UTC) + timedelta(hours=hours))
                waiting.mark_asked(recipe, number)
            answer = suspend_flow_run(timeout=round(3600 * hours) + BACKSTOP, **want)
        said = "yes" if answer.promote else "no"
    except FlowPauseTimeout:
        said = verdicts.LAPSED
    if waiting.since(recipe, number):       # for nobody else has decided meanwhile
        promotion.decide(f"{recipe}@{number}", said)


def say_where(hours: float) -> None:
    get_run_logger().info("waits %g hours for a person: %s", hours, url_for(get_run_context().flow_run))


def look_again(recipe: str, at: datetime) -> None:
    """Schedules a run that trains nothing and writes down what lapsed."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):      # the deployment was removed
        server.patiently(lambda: client.create_flow_run_from_deployment(
            runtime.deployment.id, parameters={"recipes": [recipe], "approve": verdicts.LAPSED},
            state=Scheduled(scheduled_time=at), idempotency_key=f"{runtime.flow_run.id}-{recipe}", tags=[server.TAG]))


def asked() -> dict[str, int]:
    """{recipe: version} that this run has asked about, where it was suspended and goes on."""
    return _of_keys(get_run_context().flow_run)


def close(recipes: Iterable[str]) -> list[str]:
    """Ends what waits no more; returns the verdicts that are decided now or since.

    An answer is also one at a terminal (evergreen promote sts@3 --yes), and one to a run that the server cancelled as
    it went on, because another of the same recipe was at work.
    """
    with server.connected() as client:
        runs = [run for run in _that_asked(client) if set(_of_keys(run)) & set(recipes)]
        decided = [*_heard(runs), *((recipe, number) for recipe in recipes for number in waiting.lapse(recipe)),
                   *_ended(client, runs)]
    known = [one for one in dict.fromkeys(decided) if waiting.state(*one)]
    for one in known:
        waiting.mark_told(*one)      # by who calls this
    return [promotion.text(*one) for one in known]


def _heard(runs: Iterable[FlowRun]) -> Iterator[tuple[str, int]]:
    """Decides by the answers that were given to these runs after they had asked; yields the versions."""
    for run in runs:
        for recipe, number in _of_keys(run).items():
            since = waiting.since(recipe, number)
            response = keyset_from_base_key(f"suspended-{recipe}-{number}")["response"]
            if since and run.state.timestamp > since and (answer := read_flow_run_input(response, run.id)):
                try:
                    promotion.decide(f"{recipe}@{number}", "yes" if answer["promote"] else "no")
                except InputError as error:     # of this version alone: others are trained and decided on
                    get_run_logger().warning("the answer about %s@%s was not carried out: %s", recipe, number, error)
                else:
                    yield recipe, number


def _ended(client: SyncPrefectClient, runs: Iterable[FlowRun]) -> Iterator[tuple[str, int]]:
    """Ends those of the runs whose questions are all decided; yields the versions."""
    for run in runs:
        about = _of_keys(run)
        others = [recipe for recipe in run.parameters["recipes"] if recipe not in about]    # asked about later
        if run.state.is_paused() and not any(waiting.since(*one) for one in about.items()) and not any(
                map(waiting.newest, others)):
            client.set_flow_run_state(
                run.id, Completed(message=f"nothing waits any more: {waiting.said(about)}"), force=True)
            yield from about.items()


def _that_asked(client: SyncPrefectClient) -> Iterator[FlowRun]:
    """The runs of deployments that asked a person and wait, or ended lately and not by themselves."""
    def of(*states: StateType) -> dict:
        return {"flow_filter": filters.FlowFilter(name=filters.FlowFilterName(any_=[server.RETRAIN])),
                "flow_run_filter": filters.FlowRunFilter(state=filters.FlowRunFilterState(
                    type=filters.FlowRunFilterStateType(any_=list(states)))),
                "sort": FlowRunSort.EXPECTED_START_TIME_DESC}

    for run in (*server.everything(client.read_flow_runs, **of(StateType.PAUSED)),
                *client.read_flow_runs(**of(StateType.CANCELLED, StateType.CRASHED), limit=server.PAGE)):
        if run.deployment_id and run.empirical_policy.pause_keys:
            yield run


def _of_keys(run: FlowRun) -> dict[str, int]:
    """{recipe: version} of the questions that a run has asked."""
    keys = (key.rpartition("-") for key in run.empirical_policy.pause_keys or ())
    return {recipe: int(number) for recipe, _, number in keys}
