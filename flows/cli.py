"""`evergreen`: parses, prints, delegates; heavy libraries are imported by the command that needs them."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from steps import command

HOME = Path(".evergreen")
PREFECT = {
    "PREFECT_HOME": str(HOME.absolute() / "prefect"),
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s | %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s | %(task_run_name)s | %(message)s",
}


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
    sub = add("pin", pin, "write the present commit hash of a hub source into params.yaml")
    sub.add_argument("name", metavar="NAME", help="the source's name in params.yaml")
    sub = add("ui", ui, "open the MLflow page on the project's store")
    sub.add_argument("--port", type=int, default=5000)
    return top


def add_approve(to) -> None:
    to.add_argument("--approve", choices=("auto", "ask"),
                    help="promote what the rules promote, or ask a person first (gate.approval in params.yaml)")


def main() -> None:
    """The console script. Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    command.unblock()
    sys.exit(command.status(dispatch, sys.argv[1:]))


def dispatch(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    return options.body(options) or 0


def run(options: argparse.Namespace) -> int:
    from steps import params, tracking
    from steps.schema import InputError

    project = params.load()
    if not tracking.available():
        raise InputError("a run registers what it makes, and MLflow is not installed or is switched off; "
                         "make setup, or run the stages alone with: dvc repro")
    recipes = sorted(project.recipes) if options.recipes == ["all"] else list(dict.fromkeys(options.recipes))
    for recipe in recipes:
        project.recipe(recipe)
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds}: must be at least 1")
    command.quiet(offline=False)
    os.environ.update({k: v for k, v in PREFECT.items() if k not in os.environ})

    from flows import report

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with report.only_one(HOME / "run.lock"):
        report.clean_up()
        return report.run(recipes, options.seeds, options.approve)


def register(options: argparse.Namespace) -> None:
    command.quiet()
    from flows import report

    report.register_finished(options.recipe)


def promote(options: argparse.Namespace) -> None:
    command.quiet()
    from flows import promotion

    print(promotion.promote(options.model, options.approve))


def predict(options: argparse.Namespace) -> None:
    command.quiet()
    from steps import predict

    print("\n".join(predict.predict(options.model, options.texts)))


def embed(options: argparse.Namespace) -> None:
    command.quiet()
    from steps import embed

    version, rows, dimension = embed.embed_file(options.model, options.input, options.output, options.column,
                                                options.batch_size)
    print(f"{rows} vectors of {dimension} dimensions in {options.output}, made by {version}")


def pin(options: argparse.Namespace) -> None:
    command.quiet(offline=False)
    from flows import pin

    hub, before, commit = pin.pin(options.name)
    print(f"{hub}: {before} is {commit}, written to params.yaml")


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
