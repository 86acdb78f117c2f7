"""The Prefect server of PREFECT_API_URL: whether there is one, a client of it, and a run's page on it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from steps.schema import InputError

RETRAIN, STAGE = "retrain", "stage"         # our flows by their names
TAG = "evergreen"                           # of what is ours on it
PATIENCE = 120.0                            # seconds for which it may be away
PAGE = 200                                  # the most that it gives in one answer


def on_a_server() -> bool:
    """Whether the run is recorded on a server that people look at, not on a temporary one that is its own."""
    return bool(os.environ.get("PREFECT_API_URL"))


@contextmanager
def connected() -> Iterator[SyncPrefectClient]:
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


def patiently(ask: Callable):
    """The server's answer, waited for while it is away. Raises InputError where it stays away."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except httpx.HTTPError as error:
            # 500 is what it answers while its database is away
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if refused or time.monotonic() > until:
                raise InputError(f"the Prefect server does not answer: {error or type(error).__name__}") from None
            time.sleep(1)


def answered(question: Callable[[SyncPrefectClient], object]):
    """The answer to a question to a client of the server, waited for while it is away."""
    def once():
        with get_client(sync_client=True) as client:
            return question(client)

    return patiently(once)


def everything(read: Callable, **wanted) -> Iterator:
    """What one of the client's `read_...` gives, however much it is."""
    for page in count():
        found = read(limit=PAGE, offset=page * PAGE, **wanted)
        yield from found
        if len(found) < PAGE:
            return


def failures(run) -> list[str]:
    """The tasks of a run that failed, with their reasons."""
    found = answered(lambda client: client.read_task_runs(
        flow_run_filter=filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[run])),
        task_run_filter=filters.TaskRunFilter(state=filters.TaskRunFilterState(
            type=filters.TaskRunFilterStateType(any_=[StateType.FAILED, StateType.CRASHED])))))
    return [f"{task.name}: {task.state.message}" for task in found]


def page(run) -> str:
    """The Markdown on a run's page, empty before there is any."""
    return next((found.data for found in answered(lambda client: _pages(client, run))), "")


def show(run, text: str) -> None:
    """Puts Markdown on the run's page, in place of what stood there."""
    def put(client: SyncPrefectClient) -> None:
        if known := _pages(client, run):
            client.update_artifact(known[0].id, ArtifactUpdate(data=text))
        else:
            client.create_artifact(ArtifactCreate(type="markdown", data=text, flow_run_id=run))

    answered(put)


def _pages(client: SyncPrefectClient, run) -> list:
    return client.read_artifacts(artifact_filter=filters.ArtifactFilter(
        flow_run_id=filters.ArtifactFilterFlowRunId(any_=[run]),
        type=filters.ArtifactFilterType(any_=["markdown"])))
