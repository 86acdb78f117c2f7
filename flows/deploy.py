"""params.yaml and dvc.yaml -> what a Prefect server holds: work pools, deployments, automations, no dead runs."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import filters
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema_from_entrypoint
from pydantic import ValidationError

from flows import graph, lease
from flows.server import RETRAIN, STAGE, TAG, connected, everything
from flows.settings import HEARTBEAT
from steps import params
from steps.schema import InputError, Recipe

ENTRIES = {RETRAIN: "flows/pipeline.py:retrain", STAGE: "flows/stages.py:stage"}     # where our flows stand
DRIFT = "drift"                             # the tag of a run that it started
FOLDER = "EVERGREEN_PROJECT"                # the variable by which a worker says where its clone is


def deploy() -> list[str]:
    """Makes the server of PREFECT_API_URL hold what the project asks for, and says what it made, kept and removed.

    A recipe has the deployment retrain/NAME, on its schedule or by hand; a work pool of dvc.yaml has stage/POOL.
    """
    project = params.load()
    pools = remote_pools(project)
    schedules = {name: schedule(name, recipe) for name, recipe in project.recipes.items()}
    with connected() as client:
        said = [work_pool(client, name) for name in (project.work_pool, *pools)]
        wanted = {}
        for name, recipe in project.recipes.items():
            wanted[RETRAIN, name] = retraining(client, name, recipe, schedules[name], project.work_pool)
        for pool in pools:
            wanted[STAGE, pool] = one_stage(client, pool)
        said += [*wanted.values(), *lease.automations(client), *lease.swept(client)]
        for flow, name, identity in deployed(client):
            if (flow, name) not in wanted:
                client.delete_deployment(identity)
                said.append(f"deployment {flow}/{name}: removed, for the project has no such "
                            f"{'recipe' if flow == RETRAIN else 'work pool'} any more")
    return said


def stage_pools() -> set[str]:
    """The work pools to which the server deploys stages."""
    with connected() as client:
        return {name for flow, name, _ in deployed(client) if flow == STAGE}


def start_for_drift(recipe: str) -> str:
    """Starts a retraining that decides nothing, unless drift has started one within its cool-down."""
    hours = params.load().drift.cooldown_hours
    with connected() as client:
        try:
            found = client.read_deployment_by_name(f"{RETRAIN}/{recipe}")
        except ObjectNotFound:
            raise InputError(f"the server has no deployment {RETRAIN}/{recipe}; make it with: "
                             "evergreen deploy") from None
        since = datetime.now(UTC) - timedelta(hours=hours)
        for run in client.read_flow_runs(flow_run_filter=filters.FlowRunFilter(
                deployment_id=filters.FlowRunFilterDeploymentId(any_=[found.id]),
                tags=filters.FlowRunFilterTags(all_=[DRIFT]),
                state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(not_any_=[StateType.CANCELLED])),
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
    with connected() as client:
        # such as what died with the last one
        print(work_pool(client, pool), *lease.swept(client), sep="\n", flush=True)
    # Started with & by a script it would inherit that Ctrl-C is ignored, and take runs after it was asked to end.
    for signum in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_DFL)
    os.environ[FOLDER] = os.getcwd()
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool,
                              "--name", f"{pool} of {socket.gethostname()}",
                              *([] if pool == project.work_pool else ["--limit", "1"]),
                              *(["--with-healthcheck"] if health else [])])


def remote_pools(project: params.Project) -> list[str]:
    """The work pools that dvc.yaml names, but that of the machine in charge."""
    return sorted(graph.work_pools() - {project.work_pool})


def work_pool(client: SyncPrefectClient, name: str) -> str:
    try:
        return f"work pool {name}: there ({client.read_work_pool(name).type})"
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        return f"work pool {name}: made (process)"


def retraining(client: SyncPrefectClient, name: str, recipe: Recipe, when: CronSchedule | IntervalSchedule | None,
               pool: str) -> str:
    active = not paused(client, name)
    identity = put(client, RETRAIN, name, pool, parameters={"recipes": [name]}, concurrency_limit=1,
                   concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
                   schedules=[DeploymentScheduleCreate(schedule=when, slug=name, active=active)] if when else [])
    at = recipe.schedule
    if at is None:
        return f"deployment {identity}: by hand, no schedule"
    return f"deployment {identity}: {at.cron or f'every {at.interval} s'} ({at.timezone}) on {pool}" + (
        "" if active else ", paused on the server's page")


def paused(client: SyncPrefectClient, name: str) -> bool:
    """Whether somebody paused the recipe's schedule on the server's page: to deploy again does not start it."""
    try:
        found = client.read_deployment_by_name(f"{RETRAIN}/{name}")
    except ObjectNotFound:
        return False
    return any(schedule.slug == name and not schedule.active for schedule in found.schedules)


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
        raise InputError(f"{params.PARAMS}: recipes.{name}.schedule.cron is {at.cron!r}: "
                         + error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def deployed(client: SyncPrefectClient) -> Iterator[tuple[str, str, object]]:
    """(flow, name, id) of every deployment of ours on the server."""
    flows = {flow.id: flow.name for flow in everything(client.read_flows)}
    for found in everything(client.read_deployments):
        if TAG in found.tags and flows.get(found.flow_id) in (RETRAIN, STAGE):
            yield flows[found.flow_id], found.name, found.id
