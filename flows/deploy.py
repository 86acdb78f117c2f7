"""params.yaml and dvc.yaml -> what a Prefect server holds: work pools, deployments, automations, no dead runs.

With pipeline.py, stages.py and notifications.py the only import of prefect.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate, DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events.actions import ChangeFlowRunState
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed
from prefect.utilities.callables import parameter_schema_from_entrypoint
from pydantic import ValidationError

from flows import graph
from flows.settings import HEARTBEAT
from steps import params
from steps.schema import InputError, Recipe

RETRAIN, STAGE = "retrain", "stage"         # the flows by their names, and where they stand
ENTRIES = {RETRAIN: "flows/pipeline.py:retrain", STAGE: "flows/stages.py:stage"}
TAG, DRIFT = "evergreen", "drift"
LEASE = timedelta(seconds=75)               # without a heartbeat, after which a run is given up
START = timedelta(minutes=10)               # for a worker to start what it has taken
PATIENCE = 120.0                            # seconds for which a server may be away
FOLDER = "EVERGREEN_PROJECT"                # the variable by which a worker says where its clone is


def deploy() -> list[str]:
    """Makes the server of PREFECT_API_URL hold what the project asks for, and says what it made, kept and removed.

    A recipe has the deployment retrain/NAME, on its schedule or by hand; a work pool of dvc.yaml has stage/POOL.
    """
    project = params.load()
    pools = remote_pools(project)
    with server() as client:
        said = [work_pool(client, name) for name in (project.work_pool, *pools)]
        wanted = {}
        for name, recipe in project.recipes.items():
            wanted[RETRAIN, name] = retraining(client, name, recipe, project.work_pool)
        for pool in pools:
            wanted[STAGE, pool] = one_stage(client, pool)
        said += [*wanted.values(), *automations(client), *swept(client)]
        for flow, name, identity in deployed(client):
            if (flow, name) not in wanted:
                client.delete_deployment(identity)
                said.append(f"deployment {flow}/{name}: removed, for the project has no such "
                            f"{'recipe' if flow == RETRAIN else 'work pool'} any more")
    return said


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
    with server() as client:
        return list(swept(client))


def swept(client: SyncPrefectClient) -> Iterator[str]:
    def in_state(*types: StateType) -> dict:
        return {"state": filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=list(types)))}

    ours = filters.FlowFilter(name=filters.FlowFilterName(any_=[RETRAIN, STAGE]))
    now = datetime.now(UTC)
    for run in client.read_flow_runs(flow_filter=ours, flow_run_filter=filters.FlowRunFilter(
            **in_state(StateType.RUNNING, StateType.CANCELLING))):
        if run.state.timestamp < now - LEASE and not beats(client, run.id, now - LEASE):
            client.set_flow_run_state(run.id, Crashed(message="no sign of life; swept"), force=True)
            yield f"run {run.name}: given up, no sign of life since before {now - LEASE:%Y-%m-%d %H:%M:%SZ}"
    # a task has no heartbeat of its own, and stays Running when its flow is given up
    for task in client.read_task_runs(
            flow_filter=ours, flow_run_filter=filters.FlowRunFilter(**in_state(
                StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED)),
            task_run_filter=filters.TaskRunFilter(state=filters.TaskRunFilterState(type=filters.TaskRunFilterStateType(
                any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])))):
        client.set_task_run_state(task.id, Crashed(message="its run has ended; swept"), force=True)
        yield f"task {task.name}: given up, for its run has ended"


def beats(client: SyncPrefectClient, run, since: datetime) -> bool:
    """Whether a run has shown a sign of life since then."""
    return client.read_events(EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]), occurred=EventOccurredFilter(since=since),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run}"])), limit=1).total > 0


def on_a_server() -> bool:
    """Whether the run is recorded on a server that people look at, not on a temporary one that is its own."""
    return "PREFECT_API_URL" in os.environ


def check_lease(run) -> None:
    """Raises InputError where the server has given this run up, or cannot be asked: then others may be at its work."""
    if not on_a_server():
        return
    with get_client(sync_client=True) as client:
        state = patiently(lambda: client.read_flow_run(run)).state
    if not state.is_running():
        raise InputError(f"the server has given this run up ({state.name}: {state.message}); it registers and promotes "
                         "nothing")


def patiently(ask: Callable):
    """The server's answer, waited for while it is away. Raises InputError where it stays away."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) or time.monotonic() > until:
                raise InputError(f"the Prefect server does not answer: {error or type(error).__name__}") from None
            time.sleep(1)


def show(run, text: str) -> None:
    """Puts Markdown on the run's page, in place of what stood there."""
    with get_client(sync_client=True) as client:
        of_it = filters.ArtifactFilter(flow_run_id=filters.ArtifactFilterFlowRunId(any_=[run]),
                                       type=filters.ArtifactFilterType(any_=["markdown"]))
        if known := client.read_artifacts(artifact_filter=of_it):
            client.update_artifact(known[0].id, ArtifactUpdate(data=text))
        else:
            client.create_artifact(ArtifactCreate(type="markdown", data=text, flow_run_id=run))


def stage_pools() -> set[str]:
    """The work pools to which the server deploys stages."""
    with server() as client:
        return {name for flow, name, _ in deployed(client) if flow == STAGE}


def start_for_drift(recipe: str) -> str:
    """Starts a retraining that decides nothing, unless drift has started one within its cool-down."""
    hours = params.load().drift.cooldown_hours
    with server() as client:
        try:
            found = client.read_deployment_by_name(f"{RETRAIN}/{recipe}")
        except ObjectNotFound:
            raise InputError(f"the server has no deployment {RETRAIN}/{recipe}; make it with: "
                             "evergreen deploy") from None
        since = datetime.now(UTC) - timedelta(hours=hours)
        for run in client.read_flow_runs(flow_run_filter=filters.FlowRunFilter(
                deployment_id=filters.FlowRunFilterDeploymentId(any_=[found.id]),
                tags=filters.FlowRunFilterTags(all_=[DRIFT]),
                expected_start_time=filters.FlowRunFilterExpectedStartTime(after_=since)), limit=1):
            return f"no retraining: drift started {run.name} less than {hours:g} hours ago (drift.cooldown_hours)"
        run = client.create_flow_run_from_deployment(found.id, parameters={"recipes": [recipe], "decide": False},
                                                     tags=[TAG, DRIFT])
    return f"retraining: {run.name}; it promotes nothing"


def work(pool: str, health: bool) -> None:
    """Becomes a worker of the pool, in this clone, and with `health` says that it lives.

    Of a pool for stages it takes one run at a time and leaves the next to another worker. That of the machine in charge
    takes what is due, so that the server sees runs of one deployment overlap and cancels all but the first.
    Raises InputError where the project names no such pool.
    """
    project = params.load()
    if pool not in (known := [project.work_pool, *remote_pools(project)]):
        raise InputError(f"the project has no work pool {pool!r}; it has: {', '.join(known)} (work_pool in "
                         f"{params.PARAMS}, meta in dvc.yaml)")
    with server() as client:
        print(work_pool(client, pool), *swept(client), sep="\n", flush=True)     # such as what died with the last one
    # Started with & by a script it would inherit that Ctrl-C is ignored, and take runs after it was asked to end.
    for signum in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_DFL)
    os.environ[FOLDER] = os.getcwd()
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool,
                              "--name", f"{pool} of {socket.gethostname()}",
                              *([] if pool == project.work_pool else ["--limit", "1"]),
                              *(["--with-healthcheck"] if health else [])])


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """A client of the server. Raises InputError where none is named, none answers or it lets nobody in."""
    if not (url := PREFECT_API_URL.value()):
        raise InputError("PREFECT_API_URL is not set: deployments are kept by a server; start one with `prefect server "
                         "start` and set PREFECT_API_URL=http://127.0.0.1:4200/api")
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pools(limit=1)
        except PrefectHTTPStatusError as error:
            status = error.response.status_code
            remedy = ("set PREFECT_API_AUTH_STRING to its user:password" if status in (401, 403) else
                      "PREFECT_API_URL must end with the server's /api")
            raise InputError(f"the Prefect server {url} answers {status}: {remedy}") from None
        except (httpx.HTTPError, OSError, ValueError) as error:
            raise InputError(f"the Prefect server {url} does not answer ({error or type(error).__name__}); start it or "
                             "correct PREFECT_API_URL") from None
        yield client


def remote_pools(project: params.Project) -> list[str]:
    """The work pools that dvc.yaml names, but that of the machine in charge."""
    return sorted(graph.work_pools() - {project.work_pool})


def work_pool(client: SyncPrefectClient, name: str) -> str:
    try:
        return f"work pool {name}: there ({client.read_work_pool(name).type})"
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        return f"work pool {name}: made (process)"


def retraining(client: SyncPrefectClient, name: str, recipe: Recipe, pool: str) -> str:
    when = schedule(name, recipe)
    identity = put(client, RETRAIN, name, pool, parameters={"recipes": [name]}, concurrency_limit=1,
                   concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
                   schedules=[DeploymentScheduleCreate(schedule=when, slug=name)] if when else [])
    at = recipe.schedule
    if at is None:
        return f"deployment {identity}: by hand, no schedule"
    return f"deployment {identity}: {at.cron or f'every {at.interval} s'} ({at.timezone}) on {pool}"


def one_stage(client: SyncPrefectClient, pool: str) -> str:
    return f"deployment {put(client, STAGE, pool, pool)}: stages that run on {pool}"


def put(client: SyncPrefectClient, flow: str, name: str, pool: str, **more) -> str:
    """Makes or changes a deployment, whose runs start in the clone of the worker that takes them."""
    schema = parameter_schema_from_entrypoint(ENTRIES[flow]).model_dump_for_openapi()
    client.create_deployment(
        client.create_flow_from_name(flow), name, work_pool_name=pool, entrypoint=ENTRIES[flow],
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": f"{{{{ ${FOLDER} }}}}"}}],
        job_variables={"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT)}},
        parameter_openapi_schema=schema, enforce_parameter_schema=True, tags=[TAG], **more)
    return f"{flow}/{name}"


def schedule(name: str, recipe: Recipe) -> CronSchedule | IntervalSchedule | None:
    at = recipe.schedule
    if at is None:
        return None
    try:
        if at.cron:
            return CronSchedule(cron=at.cron, timezone=at.timezone)
        # counted from a fixed day, so that to deploy again moves nothing
        return IntervalSchedule(interval=timedelta(seconds=at.interval), timezone=at.timezone,
                                anchor_date=datetime(2020, 1, 1, tzinfo=UTC))
    except ValidationError as error:
        raise InputError(f"{params.PARAMS}: recipes.{name}.schedule: "
                         + error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def deployed(client: SyncPrefectClient) -> Iterator[tuple[str, str, object]]:
    """(flow, name, id) of every deployment of ours on the server."""
    flows = {flow.id: flow.name for flow in client.read_flows(limit=200)}
    for found in client.read_deployments(limit=200):
        if TAG in found.tags and flows.get(found.flow_id) in (RETRAIN, STAGE):
            yield flows[found.flow_id], found.name, found.id
