"""`evergreen`: parses, prints, delegates; heavy libraries are imported by the command that needs them."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from flows import settings
from steps import command


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="evergreen", description="Fine-tunes text encoders and keeps them fresh.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, body, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(body=body)
        return sub

    sub = add("run", run, "download, prepare, train, evaluate and register recipes")
    sub.add_argument("recipes", nargs="+", metavar="RECIPE", help="names from params.yaml, or: all")
    sub.add_argument("--seeds", type=int, default=1, metavar="N",
                     help="train from N seeds, the first of them params.yaml's, and show mean and spread (1)")
    add_approve(sub)
    sub = add("check", check, "look through the data of a recipe and say what would stop a run")
    sub.add_argument("recipe", metavar="RECIPE")
    sub = add("register", register, "register what `dvc repro` made of a recipe")
    sub.add_argument("recipe", metavar="RECIPE")
    sub = add("promote", promote, "decide whether a challenger takes the champion's place")
    sub.add_argument("model", metavar="MODEL", help="sts (its challenger) or sts@3")
    answers = sub.add_mutually_exclusive_group()
    add_approve(answers)
    for answer, help in (("yes", "confirm what the rules promote"), ("no", "refuse it")):
        answers.add_argument(f"--{answer}", dest="approve", action="store_const", const=answer, help=help)
    sub = add("predict", predict, "print the similarity of two texts, or the class of each")
    sub.add_argument("model", metavar="MODEL", help="sts, sts@3 or sts@challenger; a bare name is the champion, "
                                                    "else the challenger")
    sub.add_argument("texts", nargs="+", metavar="TEXT", help="two texts for an encoder; any number for a classifier")
    sub = add("embed", embed, "turn the texts of a file into vectors")
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("input", type=Path, metavar="INPUT", help="a text file with a text on each line, or a CSV file")
    sub.add_argument("output", type=Path, metavar="OUTPUT", help="a .parquet or .npy file")
    sub.add_argument("--column", default="text", help="the column of a CSV file that holds the texts (text)")
    sub.add_argument("--batch-size", type=int, default=64, help="texts computed at once (64)")
    sub.add_argument("--append", action="store_true",
                     help="add to the vectors that OUTPUT has, which the same model must have made")
    sub = add("drift", drift, "compare a sample of users' texts with what a version was trained on")
    sub.add_argument("model", metavar="MODEL", help="sts, sts@3 or sts@champion")
    sub.add_argument("sample", type=Path, metavar="FILE", help="a text file with a text on each line, or a CSV file")
    sub.add_argument("--column", default="text", help="the column of a CSV file that holds the texts (text)")
    sub.add_argument("--start", action="store_true", help="where it is far, start a retraining on the Prefect server")
    sub = add("rollback", rollback, "put the previous champion back, or another version")
    sub.add_argument("recipe", metavar="RECIPE")
    sub.add_argument("--to", type=int, metavar="VERSION", help="the version to put in charge (the champion before)")
    sub.add_argument("--why", default="", metavar="TEXT", help="the reason, kept in the history")
    sub = add("history", history, "show who put which version in charge, when and why")
    sub.add_argument("recipe", metavar="RECIPE")
    sub.add_argument("--at", metavar="TIME", help="as it was then, such as 2026-11-01T00:00Z")
    sub = add("explain", explain, "show what a version was made of, by whom it was put in charge and on what evidence")
    sub.add_argument("model", metavar="MODEL", help="sts, sts@3 or sts@champion")
    sub = add("reproduce", reproduce, "build a version again in a scratch folder and compare the weights")
    sub.add_argument("model", metavar="MODEL", help="sts, sts@3 or sts@champion")
    sub.add_argument("--force", action="store_true", help="train anew instead of restoring from DVC's cache")
    sub = add("compare", compare, "show two versions side by side: parameters, data, scores, examples, neighbours")
    sub.add_argument("first", metavar="MODEL", help="such as sts@2")
    sub.add_argument("second", metavar="MODEL", help="such as sts@3")
    sub.add_argument("--sample", type=int, default=1000, help="texts of the test that are embedded (1000)")
    sub.add_argument("--neighbours", type=int, default=10, help="nearest texts looked at (10)")
    sub = add("delete", delete, "delete a version that holds no alias")
    sub.add_argument("version", metavar="VERSION", help="such as sts@2")
    sub = add("pin", pin, "write the present commit hash of hub sources into params.yaml")
    sub.add_argument("names", nargs="*", metavar="NAME", help="the source's name there; none: all that follow a branch")
    add("deploy", deploy, "tell the Prefect server of PREFECT_API_URL the schedules and work pools of this project")
    sub = add("worker", worker, "do in this clone what that server has for a work pool")
    sub.add_argument("pool", metavar="POOL", help="work_pool of params.yaml, or one that dvc.yaml names")
    sub.add_argument("--health", action="store_true", help="say at port 8080, /health, whether it lives")
    sub = add("ui", ui, "open the MLflow page on the project's store")
    sub.add_argument("--port", type=int, default=5000)
    return top


def add_approve(to) -> None:
    to.add_argument("--approve", choices=("auto", "ask"),
                    help="promote what the rules promote, or ask a person first (gate.approval in params.yaml)")


def main() -> None:
    """The console script. Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    command.unblock()
    command.run(dispatch)


def dispatch(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    return options.body(options) or 0


def run(options: argparse.Namespace) -> int:
    from steps import params, tracking
    from steps.schema import LARGEST_SEED, InputError

    project = params.load()
    if not tracking.available():
        raise InputError("a run registers what it makes, and MLflow is not installed or is switched off; "
                         "make setup, or run the stages alone with: dvc repro")
    recipes = sorted(project.recipes) if options.recipes == ["all"] else list(dict.fromkeys(options.recipes))
    for recipe in recipes:
        project.recipe(recipe)
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds}: must be at least 1")
    if (last := project.seed + options.seeds - 1) > LARGEST_SEED:
        raise InputError(f"--seeds {options.seeds}: the last of them would be {last}, and the largest is "
                         f"{LARGEST_SEED}; lower seed ({project.seed}) in params.yaml")
    settings.prefect()
    from flows import processes, report

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with command.only_one(processes.CLONE, "this folder"):
        report.clean_up(settings.PREFECT["PREFECT_HOME"])
        return report.run(recipes, options.seeds, options.approve, lambda: notice(*recipes))


def check(options: argparse.Namespace) -> int:
    command.quiet(offline=False)
    from flows import check

    found, folder = check.check(options.recipe)
    print((folder / check.PAGE).read_text(encoding="utf-8"), end="")
    return 2 if found.stops else 0


def register(options: argparse.Namespace) -> None:
    command.quiet()
    from flows import report

    notice(options.recipe)
    report.register_finished(options.recipe)


def promote(options: argparse.Namespace) -> None:
    command.quiet()
    from flows import promotion

    notice(options.model)
    print(promotion.promote(options.model, options.approve))


def predict(options: argparse.Namespace) -> None:
    command.quiet()
    from steps import predict

    notice(options.model)
    print("\n".join(predict.predict(options.model, options.texts)))


def embed(options: argparse.Namespace) -> None:
    command.quiet()
    from steps import embed

    version, rows, dimension = embed.embed_file(options.model, options.input, options.output, options.column,
                                                options.batch_size, options.append)
    notice(options.model)
    print(f"{rows} vectors of {dimension} dimensions in {options.output}, made by {version}")


def drift(options: argparse.Namespace) -> None:
    settings.prefect()
    from steps import drift, register

    version, far, lines = drift.report(options.model, options.sample, options.column, register.folders)
    print("\n".join(lines), flush=True)
    if options.start and far:
        from flows import deploy

        print(deploy.start_for_drift(version.recipe))


def rollback(options: argparse.Namespace) -> None:
    command.quiet()
    from steps import history, journal, tracking

    notice(options.recipe)
    event = history.rollback(tracking.client(), options.recipe, options.to, options.why)
    before, after = (journal.name(event.recipe, n) for n in (event.before, event.after))
    print(f"{after} is in charge, in place of {before}; its files were verified (entry {event.number})")


def history(options: argparse.Namespace) -> int:
    command.quiet()
    from steps import history, journal, registry, tracking, verdicts

    found = tracking.client()
    at = history.parse_time(options.at) if options.at else None
    registry.numbers(found, options.recipe)
    event = history.reconcile(found, options.recipe)
    warn(history.warnings(found, event) if event else [])
    log = journal.read(found, options.recipe)
    print("\n".join(journal.table(options.recipe, log, at)))
    problems = [*log.problems, *verdicts.problems(found, log)]
    for problem in problems:
        print(f"error: the history is not as it was written: {problem}", file=sys.stderr)
    return 1 if problems else 0


def explain(options: argparse.Namespace) -> None:
    command.quiet()
    from steps import explain

    notice(options.model)
    print("\n".join(explain.explain(options.model)))


def reproduce(options: argparse.Namespace) -> int:
    command.quiet()
    from flows import reproduce
    from flows.processes import StageFailed

    notice(options.model)
    try:
        return reproduce.run(options.model, options.force)
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def compare(options: argparse.Namespace) -> None:
    command.quiet()
    from steps import compare

    notice(options.first)
    print("\n".join(compare.compare(options.first, options.second, options.sample, options.neighbours)))


def delete(options: argparse.Namespace) -> None:
    command.quiet()
    from steps import history, registry, tracking

    notice(options.version)
    recipe, number = registry.pick(found := tracking.client(), options.version)
    with history.deciding(recipe):
        registry.delete(found, recipe, number)
    print(f"{recipe}@{number} is deleted")


def notice(*models: str) -> None:
    """Says of each model's recipe whether its champion was put in charge by hand."""
    from steps import history

    for model in models:
        warn(history.notice(model.partition("@")[0]))


def warn(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr, flush=True)


def pin(options: argparse.Namespace) -> None:
    command.quiet(offline=False)
    from flows import pin

    for hub, branch, before, commit in pin.pin(options.names):
        print(f"{hub}: {branch} is still {commit}" if commit == before else
              f"{hub}: {branch} is {commit}, written to params.yaml")


def deploy(options: argparse.Namespace) -> None:
    settings.prefect()
    from flows import deploy

    print("\n".join(deploy.deploy()))


def worker(options: argparse.Namespace) -> None:
    settings.prefect()
    from flows import deploy

    deploy.work(options.pool, options.health)


def ui(options: argparse.Namespace) -> None:
    command.quiet()
    from steps import tracking

    tracking.client()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    print(f"MLflow page: http://127.0.0.1:{options.port} (Ctrl-C ends it)", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking.uri(),
                              "--host", "127.0.0.1", "--port", str(options.port), "--workers", "1"])


if __name__ == "__main__":
    main()
