"""A run from the terminal: what is to do, the flow, and the table at the end."""

import time
from collections.abc import Callable
from contextlib import suppress

from flows import graph, preflight, promotion, seeds
from flows.processes import StageFailed
from steps import params, provenance, register, registry, scores, tracking
from steps.registry import Version
from steps.schema import InputError


def clean_up(prefect_home: str) -> None:
    """Clears what a run of this folder that was killed with -9 left: DVC's lock file, a temporary Prefect server.

    A server of another PREFECT_HOME than the project's own is somebody's who wants it.
    """
    import psutil

    graph.mend()
    for process in psutil.process_iter(["ppid", "cmdline"]):
        if process.info["ppid"] == 1 and "prefect.server.api.server:create_app" in (process.info["cmdline"] or ()):
            with suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") == prefect_home:
                    process.terminate()


def run(names: list[str], count: int, approve: str | None, notice: Callable[[], None]) -> int:
    """Runs the recipes and prints what came of it; where nothing is to do, no flow is started.

    With a `count` above 1 each recipe is trained from that many seeds, and the verdict comes after the last. `notice`
    looks for champions that were moved by hand; it opens the store, for which there is time while a server starts.
    """
    began = time.monotonic()
    say_changes()
    project = params.load()
    plan = graph.plan(project.targets(names))
    stages = [s.name for s in plan]
    if not (stale := graph.stale(stages)) and all(register.registered(n) for n in names):
        notice()
        print(f"nothing to do: {len(stages)} stages unchanged, every version registered already")
        versions, code = {n: register.register(n) for n in names}, 0
    else:
        preflight.check_all(plan, project, stale)
        versions, code = flow(names, approve, count == 1, notice)
    for name, version in versions.items():
        print("\n" + table(name, version))
        if count > 1:
            try:
                print("\n" + seeds.run(name, count))
            except StageFailed as error:
                print(f"error: {error}", flush=True)
                code = 1
                continue
        print("\n" + promotion.promote(f"{name}@{version.number}", approve))
    print(f"\n{time.monotonic() - began:.0f} s; look at it in MLflow with: make ui")
    return code


def register_finished(name: str) -> None:
    """Registers what the stages left, if they left what the parameters, code and data of now ask for."""
    say_changes()
    project = params.load()
    project.recipe(name)
    targets = project.targets([name])
    stages = [s.name for s in graph.plan(targets)]
    for line in graph.discard_damaged([s for s in stages if s.startswith(("train@", "evaluate@"))]):
        print(line, flush=True)
    if old := graph.stale(stages):
        raise InputError(f"{', '.join(old)} would have to run again: what lies here is not what params.yaml, the code "
                         f"and the data now make; first: dvc repro {' '.join(targets)}")
    print(table(name, register.register(name)))


def say_changes() -> None:
    if "+changes" in (commit := provenance.git_commit()):
        print(f"note: tracked files differ from the last commit; versions will say {commit[:7]}+changes", flush=True)


def flow(names: list[str], approve: str | None, decide: bool,
         notice: Callable[[], None]) -> tuple[dict[str, Version], int]:
    from flows import pipeline

    def get_ready() -> None:
        notice()
        register.get_ready()

    try:
        done = pipeline.run(names, approve, decide, get_ready)
    except StageFailed as error:
        print(f"error: {error}", flush=True)
        return {}, 1
    found = tracking.client()
    counts = ", ".join(f"{name} {outcome}" for name, outcome in done["stages"].items())
    print(f"\n{counts}")
    return {name: registry.read_version(found, name, v["version"], v["created"])
            for name, v in done["versions"].items()}, 0


def table(recipe: str, version: Version) -> str:
    """Every test set's scores with their intervals, the version and the run."""
    project = params.load()
    settings = project.recipe(recipe)
    found = scores.tables(recipe, settings, register.folders(recipe)["test"], register.references(recipe, project))
    found[0].lines.extend(in_charge(recipe, version, found[0].metric))
    state = "registered now" if version.created else "registered before"
    return "\n".join([
        *(line for part in found for line in scores.text(part, settings.evaluate.confidence)),
        f"  version     {recipe}@{version.number} ({', '.join(version.aliases) or 'no alias'}), {state}",
        f"  run         {version.run_id}"])


def in_charge(recipe: str, version: Version, metric: str) -> list[tuple[str, float, float, float]]:
    """The champion's line, as it was measured when it was registered, if that was on the same test rows."""
    store = tracking.client()
    champion = registry.champion(store, recipe)
    if champion is None or champion[0].number == version.number:
        return []
    held, tags = champion
    rows = "test_content_sha256"
    if tags.get(rows) != store.get_model_version(recipe, str(version.number)).tags.get(rows, ""):
        return []
    return [(f"champion @{held.number}", *(float(tags[f"test_{metric}{end}"]) for end in ("", "_low", "_high")))]
