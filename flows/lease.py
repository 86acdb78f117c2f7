"""What shows no sign of life is given up, and does nothing more if it lives: runs, their tasks, their leases.

https://docs.prefect.io/v3/advanced/detect-zombie-flows
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import filters
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.states import Crashed

from flows import server
from flows.server import RETRAIN, STAGE, TAG
from steps.schema import InputError

LEASE = timedelta(seconds=75)               # without a heartbeat, after which a run is given up
START = timedelta(minutes=35)               # for a worker to start what it has taken, a GPU and an image included


def automations(client: SyncPrefectClient) -> Iterator[str]:
    """Makes the server give up runs that show no sign of life: their process and its worker are dead or cut off.

    It looks at our flows alone, for others may beat less often.
    """
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut", "Suspended", "AwaitingRetry")
    for name, after, expected, within, message in (
            ("lost", "heartbeat", ("heartbeat", *ends), LEASE, "no heartbeat: its process is dead or cut off"),
            ("not started", "Pending", ("Running", *ends), START, "its worker took it and did not start it")):
        wanted = AutomationCore(
            name=f"{TAG}: {name}", description=f"A run is given up: {message}.",
            trigger=EventTrigger(
                after={f"prefect.flow-run.{after}"}, expect={f"prefect.flow-run.{state}" for state in expected},
                match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
                match_related=ResourceSpecification({
                    "prefect.resource.role": "flow", "prefect.resource.id": [
                        f"prefect.flow.{client.create_flow_from_name(flow)}" for flow in (RETRAIN, STAGE)]}),
                for_each={"prefect.resource.id"}, posture=Posture.Proactive, threshold=1, within=within),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)])
        if known := client.read_automations_by_name(wanted.name):
            client.update_automation(known[0].id, wanted)
        else:
            client.create_automation(wanted)
        yield f"automation {wanted.name}: after {within.total_seconds():g} s"


def sweep() -> list[str]:
    """Gives up what died before the server or its automations were there; a line for each run."""
    with server.connected() as client:
        return list(swept(client))


def swept(client: SyncPrefectClient) -> Iterator[str]:
    def in_state(*types: StateType) -> dict:
        return {"state": filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=list(types)))}

    ours = filters.FlowFilter(name=filters.FlowFilterName(any_=[RETRAIN, STAGE]))
    now = parsedate_to_datetime(client.hello().headers["date"])     # the server's clock, which dates what we look at
    for since, *types in ((now - LEASE, StateType.RUNNING, StateType.CANCELLING), (now - START, StateType.PENDING)):
        for run in client.read_flow_runs(flow_filter=ours, flow_run_filter=filters.FlowRunFilter(**in_state(*types))):
            if run.state.timestamp < since and not beats(client, run.id, since):
                client.set_flow_run_state(run.id, Crashed(message="no sign of life; swept"), force=True)
                yield f"run {run.name}: given up, no sign of life since before {since:%Y-%m-%d %H:%M:%SZ}"
    # A task has no heartbeat of its own, and stays Running when its flow is given up. What those say that have just
    # ended by themselves may still be on its way.
    long_ago = {"end_time": filters.FlowRunFilterEndTime(before_=now - LEASE)}
    for ended in (in_state(StateType.CRASHED),
                  in_state(StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED) | long_ago):
        for task in client.read_task_runs(
                flow_filter=ours, flow_run_filter=filters.FlowRunFilter(**ended),
                task_run_filter=filters.TaskRunFilter(state=filters.TaskRunFilterState(
                    type=filters.TaskRunFilterStateType(
                        any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])))):
            client.set_task_run_state(task.id, Crashed(message="its run has ended; swept"), force=True)
            yield f"task {task.name}: given up, for its run has ended"


def beats(client: SyncPrefectClient, run, since: datetime) -> bool:
    """Whether a run has shown a sign of life since then."""
    return client.read_events(EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]), occurred=EventOccurredFilter(since=since),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run}"])), limit=1).total > 0


def check_lease(run) -> None:
    """Raises InputError where the server has given this run up, or cannot be asked: then others may be at its work."""
    if not server.on_a_server():
        return
    state = server.answered(lambda client: client.read_flow_run(run)).state
    if not state.is_running():
        raise InputError(f"the server has given this run up ({state.name}: {state.message}); it registers and promotes "
                         "nothing")
