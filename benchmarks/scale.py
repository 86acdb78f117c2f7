"""What grows with recipes, versions and flows: a tiny model, the real graph, registry and servers.

python -m benchmarks.scale graph [--recipes 10 30 100]
python -m benchmarks.scale registry [--versions 1000]
python -m benchmarks.scale flows [--flows 8] [--tasks 20]

`registry` and `flows` measure the servers that the environment names (. .stack/env), else SQLite files of their own.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

from steps import command

NAME = "scale"
RESOLVE = """
import json, time
begun = time.perf_counter()
from flows import graph
from steps import params
names = sorted(params.load().recipes)
loaded = time.perf_counter()
stages = [stage.name for stage in graph.plan(params.load().targets(names))]
resolved = time.perf_counter()
assert graph.stale(stages) == []
print(json.dumps([len(stages), loaded - begun, resolved - loaded, time.perf_counter() - resolved]))
"""
FLOW = """
import sys, time
from prefect import flow, task

@task
def step(number):
    return number

@flow(name="scale")
def steps(count):
    return sum(step(number) for number in range(count))

began = time.perf_counter()
steps(int(sys.argv[1]))
print(time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("graph", "registry", "flows"))
    parser.add_argument("--recipes", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--flows", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=20)
    options = parser.parse_args()
    os.environ.update(command.QUIET)
    with tempfile.TemporaryDirectory() as room:
        {"graph": graph, "registry": registry, "flows": flows}[options.what](options, Path(room))


def finished(room: Path, environment: dict[str, str]):
    """A project of one recipe on a tiny model, trained and registered."""
    from tests import project as small

    (room / "home").mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment |= {"HOME": str(room / "home"), "PATH": path,
                    **{f"GIT_{who}_{what}": "scale@localhost" for who in ("AUTHOR", "COMMITTER")
                       for what in ("NAME", "EMAIL")}}
    project = small.make_project(room / "project", small.make_tiny_model(room / "tiny"), environment)
    project.evergreen("run", "sts")
    return project


def without_servers() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "DVC_"))} | command.QUIET


@contextmanager
def prefect_server(room: Path) -> Iterator[dict[str, str]]:
    """A Prefect server on SQLite; the variables with which it is reached. What it says is in server.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = {"PREFECT_HOME": str(room / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    with open(room / "server.log", "w") as said:
        server = subprocess.Popen([sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port",
                                   str(port)], env=os.environ | there, cwd=room, stdout=said, stderr=said)
    try:
        until(lambda: ask(there, "health") is not None)
        yield there
    finally:
        server.terminate()
        server.wait(30)


def graph(options: argparse.Namespace, room: Path) -> None:
    """Recipes that are copies of one: their outputs are copied and committed, their versions made of its tags."""
    with prefect_server(room) as there:
        _graph(options, finished(room, without_servers()), there)


def _graph(options: argparse.Namespace, project, server: dict[str, str]) -> None:
    for count in options.recipes:
        names = [f"copy{number:03}" for number in range(count - 1)]
        for name in names:
            shutil.copy(project / "steps/recipes/sts.py", project / f"steps/recipes/{name}.py")
            for folder in ("data/prepared", "models", "evaluation"):
                shutil.copytree(project / f"{folder}/sts", project / f"{folder}/{name}", dirs_exist_ok=True)
        project.change(lambda values, names=names: values["recipes"].update(
            {name: json.loads(json.dumps(values["recipes"]["sts"])) for name in names}))
        project.run("git", "add", "-A")
        project.run("git", "commit", "-qm", "Copies")
        began = time.perf_counter()
        project.dvc("commit", "--force", "--quiet")
        committed = time.perf_counter() - began
        project.run(sys.executable, "-c", REGISTER, *names, PYTHONPATH=str(project.folder))
        stages, loaded, resolved, stale = json.loads(
            project.run(sys.executable, "-c", RESOLVE, PYTHONPATH=str(project.folder)).stdout)
        began = time.perf_counter()
        done = project.evergreen("run", "all")
        nothing = time.perf_counter() - began
        assert done.stdout.startswith("nothing to do"), done.stdout[:300]
        project.change(lambda values: [recipe.update(schedule={"cron": "0 2 * * *", "timezone": "UTC"})
                                       for recipe in values["recipes"].values()])
        began = time.perf_counter()
        done = project.evergreen("deploy", **server)
        deployed = time.perf_counter() - began
        assert done.stdout.count("deployment retrain/") == count, done.stdout[:300]
        print(f"{count:>4} recipes, {stages} stages: parameters {loaded:.2f} s, resolved {resolved:.2f} s, seen to be "
              f"up to date {stale:.2f} s; evergreen run all, nothing to do: {nothing:.1f} s; evergreen deploy: "
              f"{deployed:.1f} s (copies committed: {committed:.0f} s)", flush=True)


REGISTER = """
import sys
from steps import journal, register, registry, tracking
found = tracking.client()
first = found.get_model_version("sts", "1")
for name in sys.argv[1:]:
    if registry.model(found, name)[0]:
        continue
    model, evaluation = register.identity(name)
    found.create_registered_model(name, {registry.IN_CHARGE: journal.text(1)})
    tags = dict(first.tags) | {"recipe": name, "model_sha256": model, "evaluation_sha256": evaluation}
    found.create_model_version(name, first.source, first.run_id, tags=tags, model_id=first.model_id)
    for alias in registry.PREFERRED:
        found.set_registered_model_alias(name, alias, "1")
"""


def registry(options: argparse.Namespace, room: Path) -> None:
    """Versions that are copies of one, whose files are verified at each promotion like those of any."""
    from steps import history, registry, tracking

    there = os.environ.get("MLFLOW_TRACKING_URI", "")
    project = finished(room, without_servers() | {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")})
    os.chdir(project.folder)
    found = tracking.client()
    name = "sts"
    number = max(registry.numbers(found, name))
    first = found.get_model_version(name, str(number))
    logged = first.source.removeprefix("models:/")
    began = time.perf_counter()
    while number < options.versions:
        tags = dict(first.tags) | {"model_sha256": f"of another one, {number}"}
        number = int(found.create_model_version(name, first.source, first.run_id, tags=tags, model_id=logged).version)
    made = time.perf_counter() - began
    moves = iter(range(number, 1, -1))
    figures = {
        "find the champion": timed(lambda: registry.champion(found, name)),
        "find a version by its content": timed(lambda: registry.version_of(
            found, name, first.tags["model_sha256"], first.tags["evaluation_sha256"]), 3),
        "list all": timed(lambda: registry.numbers(found, name), 3),
        "promote": timed(lambda: history.move(found, name, next(moves), "measured", "promote"), 5)}
    print(f"{number} versions in {'MLflow server at ' + there if there else 'SQLite'} (made in {made:.0f} s): "
          + ", ".join(f"{what} {seconds * 1000:,.0f} ms" for what, seconds in figures.items()), flush=True)


def timed(call: Callable[[], object], times: int = 7) -> float:
    """The median seconds of some calls, after one that is not counted."""
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return median(found[1:])


def flows(options: argparse.Namespace, room: Path) -> None:
    """As many processes with a flow each, started together; then what the server has of them."""
    here = "PREFECT_API_URL" not in os.environ
    with prefect_server(room) if here else nullcontext({}) as there:
        variables = os.environ | there
        before = count(variables)
        (room / "flow.py").write_text(FLOW, encoding="utf-8")
        running = [subprocess.Popen([sys.executable, "flow.py", str(options.tasks)], cwd=room, text=True,
                                    env=variables | {"PREFECT_HOME": str(room / f"prefect{number}")},
                                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                   for number in range(options.flows)]
        said = [process.communicate()[0] for process in running]
        assert all(process.returncode == 0 for process in running)
        wanted = (options.flows, options.flows * options.tasks)
        until(lambda: tuple(now - then for now, then in zip(count(variables), before, strict=True)) == wanted)
    seconds = sorted(float(text.split()[-1]) for text in said)
    locked = (room / "server.log").read_text(encoding="utf-8").count("database is locked") if here else 0
    print(f"{options.flows} flows of {options.tasks} tasks on "
          f"{'SQLite' if here else 'the server of the environment'}: all {wanted[0]} flows and {wanted[1]} tasks "
          f"recorded as completed; a flow took {seconds[0]:.1f} to {seconds[-1]:.1f} s (median {median(seconds):.1f}); "
          f'"database is locked" in the log: {locked}', flush=True)


def count(variables: dict[str, str]) -> tuple[int, int]:
    """The completed runs of this benchmark's flow and of their tasks, as the server has them."""
    completed = {"state": {"type": {"any_": ["COMPLETED"]}}}
    flow = {"name": {"any_": [NAME]}}
    return (ask(variables, "flow_runs/count", {"flows": flow, "flow_runs": completed}),
            ask(variables, "task_runs/count", {"flows": flow, "task_runs": completed}))


def ask(variables: dict[str, str], path: str, body: dict | None = None):
    import base64

    headers = {"Content-Type": "application/json"}
    if "PREFECT_API_AUTH_STRING" in variables:
        headers["Authorization"] = "Basic " + base64.b64encode(variables["PREFECT_API_AUTH_STRING"].encode()).decode()
    request = urllib.request.Request(f"{variables['PREFECT_API_URL']}/{path}",
                                     json.dumps(body).encode() if body is not None else None, headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        return json.load(answer)


def until(what: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if what():
                return
        except OSError:
            pass
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:.0f} s in vain")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
