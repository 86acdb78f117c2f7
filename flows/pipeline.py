"""The retraining flow: the stages of dvc.yaml in their order, registration, the verdict."""

import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed, Failed, State

from flows import (
    approval,
    deploy,
    graph,
    lease,
    notifications,
    page,
    pin,
    preflight,
    processes,
    promotion,
    server,
    waiting,
)
from flows.stages import run_stage, set_slots, turn
from steps import attempts, command, history, params, register, tracking, verdicts
from steps.schema import InputError


@task(cache_policy=NO_CACHE, persist_result=False)
def register_model(recipe: str, attempt: str) -> dict | State:
    """Registers what the recipe's stages left; the same version when nothing changed."""
    try:
        lease.check_lease(runtime.flow_run.id)
        version = register.register(recipe, attempt)
    except InputError as error:
        return Failed(message=str(error), data=error)
    get_run_logger().info("version %s %s", version.number, "registered" if version.created else "was there already")
    return {"version": version.number, "run_id": version.run_id, "created": version.created}


@task(cache_policy=NO_CACHE, persist_result=False)
def decide_on(recipe: str, number: int, approve: str | None, attempt: str) -> str | State:
    """The verdict on a version: promote, hold or reject by the rules of now. Returns its state."""
    warn(history.notice(recipe))
    try:
        lease.check_lease(runtime.flow_run.id)
        if runtime.deployment.id:
            close([recipe])         # an answer that came meanwhile goes first
        if server.on_a_server():
            waiting.owe(recipe, number)
        state = promotion.decide(f"{recipe}@{number}", approve, attempt)[1]
    except InputError as error:
        return Failed(message=str(error), data=error)
    get_run_logger().info("%s", promotion.text(recipe, number))
    return state


@flow(name=server.RETRAIN, persist_result=False)      # stored results are pickles
def retrain(recipes: list[str], approve: str | None = None, decide: bool = True) -> dict | State:
    """Every recipe's stages, siblings side by side, its registration and its verdict. Names the first failure."""
    if not runtime.deployment.id:
        return retrained(recipes, approve, decide)
    try:
        if approve == verdicts.LAPSED:         # started for the end of the time to answer; it needs no turn
            return Completed(message=f"{close(recipes)} decided; nothing was trained")
        with turn():
            graph.mend()
            warn(lease.sweep())
            if asked := approval.asked():
                return answered(recipes, asked)
            close(recipes)
            project = params.load()
            plan = graph.plan(project.targets(recipes))
            stages = [s.name for s in plan]
            newer, unknown = pin.news(stages)
            warn(newer + unknown)
            notifications.announce_new(newer)
            if not (stale := graph.stale(stages)) and all(map(register.registered, recipes)):
                return unchanged(stages, recipes, approve, decide)
            preflight.check_all(plan, project, stale)
            set_slots(project)
            done = retrained(recipes, approve, decide)
            # a task's own state would be summed up as '1/1 states failed'
            return Failed(message=done.message) if isinstance(done, State) else done
    except InputError as error:
        return Failed(message=str(error))


def answered(recipes: list[str], asked: dict[str, int]) -> State:
    """What a run does that was suspended and goes on: it hears the answer about the version that it asked about.

    A later run may have made another meanwhile, and asks about that itself. Where several of this run's recipes wait,
    it asks about the next.
    """
    lease.check_lease(runtime.flow_run.id)
    for recipe in (*asked, *(r for r in recipes if r not in asked)):
        number = asked.get(recipe) or waiting.newest(recipe)
        if number and waiting.since(recipe, number):
            asked[recipe] = number
            approval.ask(recipe, number)
    server.show(runtime.flow_run.id, page.again(server.page(runtime.flow_run.id), asked))
    tell(asked)
    if failed := server.failures(runtime.flow_run.id):      # before it was suspended
        return Failed(message="; ".join([*failed, waiting.said(asked)]))
    return Completed(message=waiting.said(asked))


def close(recipes: list[str]) -> int:
    """Ends what waited for a person and waits no more, tells of it, and returns how many verdicts that were."""
    if decided := approval.close(recipes):
        notifications.announce(notifications.VERDICT, decided)
    return len(decided)


def unchanged(stages: list[str], recipes: list[str], approve: str | None, decide: bool) -> State:
    """What a scheduled run says where sources, parameters, code and environment are those of the last success.

    The rules of promotion and the time that a person has may be others, so the verdict is looked at. It overtakes no
    attempt that is under way elsewhere.
    """
    versions, said, moved = {}, [], {}
    attempt = {recipe: attempts.newest(tracking.client(), recipe) for recipe in recipes}
    lease.check_lease(runtime.flow_run.id)
    for recipe in recipes:
        warn(history.notice(recipe))
        number = versions[recipe] = register.registered(recipe).number
        name = f"{recipe}@{number}"
        if not decide:
            said.append(name)
            continue
        before = waiting.state(recipe, number)
        state = promotion.decide(name, approve, attempt[recipe])[1]
        if state != before or waiting.untold(recipe, number):
            moved[recipe] = number
        said.append(f"{name} ({state})")
    server.show(runtime.flow_run.id, page.page(dict.fromkeys(stages, "unchanged"), versions))
    tell(moved)
    for recipe, number in versions.items():
        if decide and waiting.unasked(recipe, number):
            approval.ask(recipe, number)
    return Completed(message="unchanged: sources, parameters, code and environment are those of the last success; "
                             f"nothing was trained; {', '.join(said)}")


def warn(lines: Iterable[str]) -> None:
    for line in lines:
        get_run_logger().warning("%s", line)


def begin(recipes: list[str]) -> dict[str, str]:
    """{recipe: this run's attempt}."""
    found, who = tracking.client(), f"{runtime.flow_run.name} {runtime.flow_run.id}"
    return {recipe: attempts.begin(found, recipe, who) for recipe in recipes}


def retrained(recipes: list[str], approve: str | None, decide: bool) -> dict | State:
    try:
        project, attempt, stages = params.load(), begin(recipes), {}
        plan = graph.plan(project.targets(recipes))
        away = pools(plan, project.work_pool)
        with graph.lock_in_order(plan):
            for stage in plan:
                stages[stage.name] = run_stage.with_options(name=stage.name, task_run_name=stage.name).submit(
                    stage.name, stage if stage.work_pool in away else None,
                    wait_for=[stages[u] for u in stage.upstream])
            wait([*stages.values()])    # a version holds the whole dvc.lock, so no stage may write it any more
        versions, decisions = {}, {}
        order = [s.name.removeprefix("train@") for s in plan if s.name.startswith("train@")]
        for recipe in (r for r in order if r in recipes and stages[f"evaluate@{r}"].state.is_completed()):
            versions[recipe] = register_model.with_options(
                name=f"register@{recipe}", task_run_name=f"register@{recipe}").submit(recipe, attempt[recipe])
            versions[recipe].wait()     # a parent is registered before its children, whose versions name it
            if decide and versions[recipe].state.is_completed():
                number = versions[recipe].result()["version"]
                decisions[recipe] = decide_on.with_options(
                    name=f"promote@{recipe}", task_run_name=f"promote@{recipe}").submit(
                        recipe, number, approve, attempt[recipe])
                decisions[recipe].wait()
        show(stages, versions)
        if server.on_a_server():
            judged = {recipe: versions[recipe].result()["version"] for recipe, decision in decisions.items()
                      if decision.state.is_completed()}
            tell(judged)
            asks = {recipe: number for recipe, number in judged.items() if waiting.unasked(recipe, number)}
            for recipe, number in asks.items():
                approval.ask(recipe, number)
            if asks:
                show(stages, versions)
                tell(asks)
        for future in (*stages.values(), *versions.values(), *decisions.values()):
            if future.state.is_failed() or future.state.is_crashed():
                return future.state
        return {"stages": {name: future.result() for name, future in stages.items()},
                "versions": {recipe: future.result() for recipe, future in versions.items()}}
    except BaseException as error:      # Prefect waits for the threads of its tasks, and they for their stages
        if not isinstance(error, Exception) and not server.on_a_server():
            command.end_within(processes.END, 130)      # for minutes, where its temporary server was ended with us
        processes.stop()
        raise


def tell(versions: dict[str, int]) -> None:
    """Announces the verdicts on these versions as they now are."""
    if known := [one for one in versions.items() if waiting.state(*one)]:
        notifications.announce(notifications.VERDICT, [promotion.text(*one) for one in known])
    for one in known:
        waiting.mark_told(*one)


def show(stages: dict, versions: dict) -> None:
    """Puts what happened on the run's page of a server."""
    if server.on_a_server():
        outcomes = {name: future.result() if future.state.is_completed() else
                    f"{future.state.name}: {(future.state.message or '').partition(chr(10))[0]}"
                    for name, future in stages.items()}
        numbers = {recipe: future.result()["version"] for recipe, future in versions.items()
                   if future.state.is_completed()}
        server.show(runtime.flow_run.id, page.page(outcomes, numbers))


def pools(plan: list[graph.Stage], own: str) -> set[str]:
    """The work pools to which the server deploys our stages, of those that they ask for; the others run here."""
    wanted = {stage.work_pool for stage in plan} - {None, own}
    if not (wanted and server.on_a_server()):
        return set()
    there = wanted & deploy.stage_pools()
    for pool in wanted - there:
        get_run_logger().info("the server has no deployment %s/%s, so its stages run here; make it with: "
                              "evergreen deploy", server.STAGE, pool)
    return there


def run(recipes: list[str], approve: str | None, decide: bool, get_ready: Callable[[], None]) -> dict:
    """Runs the flow here: on the server of PREFECT_API_URL, or on a temporary one that ends with it.

    `get_ready` is called while the server starts, and is done when the flow begins.
    """
    set_slots(params.load())
    settings = {}
    with ThreadPoolExecutor(1) as beside:       # another core has time while the server starts
        ready = beside.submit(get_ready)
        if not PREFECT_API_URL.value():
            settings = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
            # A terminal sends Ctrl-C to all; the server inherits this mask and lives to hear how we ended.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                (temporary := SubprocessASGIServer()).start()
                processes.end_with_us(temporary.server_process.pid)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        ready.result()
    with temporary_settings(settings):
        return retrain(recipes, approve, decide)
