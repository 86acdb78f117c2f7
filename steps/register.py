"""A trained and evaluated model -> one version in the registry, the same one however often it is asked.

python -m steps.register RECIPE
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from steps import attempts, command, explain, params, plots, provenance, recipes, registry, scores, seen, tracking
from steps.registry import Version
from steps.schema import InputError, Recipe

DVC_LOCK = Path("dvc.lock")
EVALUATIONS = Path("evaluation")


def main(arguments: Sequence[str]) -> None:
    recipe, = arguments
    version = register(recipe)
    print(f"{recipe}: version {version.number} {'registered' if version.created else 'is registered already'}")


def get_ready() -> None:
    """Opens the store and imports what registering takes seconds to. Raises InputError where there is no store."""
    tracking.client()
    import sentence_transformers  # noqa: F401


def folders(recipe: str) -> dict[str, Path]:
    """Where the stages of dvc.yaml leave what is registered."""
    return {"data": Path("data/prepared") / recipe, "model": Path("models") / recipe,
            "curves": EVALUATIONS / recipe / "training", "test": EVALUATIONS / recipe / "test"}


def identity(recipe: str) -> tuple[str, str]:
    """Digests of the model's files and of the evaluation's: together they are what a version is."""
    at = folders(recipe)
    for path in (at["model"] / "lineage.json", at["test"] / "metrics.json"):
        if not path.exists():
            raise InputError(f"{path} does not exist; make it with: evergreen run {recipe}")
    return provenance.folder_sha256(at["model"]), provenance.folder_sha256(at["test"])


def registered(recipe: str) -> Version | None:
    """The version that already holds what lies in the workspace."""
    return registry.version_of(tracking.client(), recipe, *identity(recipe))


def register(recipe: str, attempt: str | None = None) -> Version:
    """Makes the version, or finds the one of the same weights and evaluation, and names it challenger.

    Raises InputError where a newer attempt than this has begun; None is a person's own command.
    """
    from filelock import FileLock

    project = params.load()
    settings = project.recipe(recipe)
    at = folders(recipe)
    found = tracking.client()
    model, evaluation = identity(recipe)
    with FileLock(tracking.STORE / "register.lock"):        # one registration at a time on this machine
        attempts.check(found, recipe, attempt)
        if version := registry.version_of(found, recipe, model, evaluation):
            if registry.ALIAS not in version.aliases:
                registry.set_alias(found, recipe, version.number)
            return registry.read_version(found, recipe, version.number)
        summary = json.loads((at["data"] / "summary.json").read_text(encoding="utf-8"))
        metrics = json.loads((at["test"] / "metrics.json").read_text(encoding="utf-8"))
        lineage = json.loads((at["model"] / "lineage.json").read_text(encoding="utf-8"))
        weights = provenance.sha256(at["model"] / "model.safetensors")
        base = lineage["base_model"]
        tracking.close_lost_runs(found, recipe)
        run_id = run_of(recipe, Path(), project)
        metric = recipes.get(recipe).METRIC
        tags = {
            "recipe": recipe,
            "model_sha256": model,
            "weights_sha256": weights,
            "evaluation_sha256": evaluation,
            "git_commit": provenance.git_commit(),
            "dvc_lock_sha256": provenance.sha256(DVC_LOCK) if DVC_LOCK.exists() else "none",
            "params_sha256": provenance.digest([project.seed, project.threads, settings.what_makes_it()]),
            "environment_sha256": provenance.environment(),
            **tracking.dataset_tags(summary["source"]),
            "test_sha256": provenance.sha256(at["data"] / "test.arrow"),
            "test_content_sha256": seen.content_sha256(at["data"] / "test.arrow"),
            "test_rows": str(metrics["rows"]),
            "tasks_sha256": provenance.folder_sha256(at["data"] / "tasks"),
            "seen_sha256": provenance.sha256(at["model"] / seen.FILE),
            "base_model": settings.base_model,
            "base_model_revision": base.get("revision") or base.get("recipe") or "local",
            "base_model_sha256": base["weights_sha256"],
            "base_model_licence": base.get("licence") or ("its parents'" if "recipe" in base else "not known"),
        } | {f"test_{metric}{suffix}": str(metrics[metric][f"model{suffix}"]) for suffix in ("", "_low", "_high")}
        if "recipe" in base:
            tags["parent"] = registry.version_with_weights(found, base["recipe"], base["weights_sha256"])
        if teacher := lineage["dataset"].get("teacher"):
            tags["teacher"] = f"{teacher['model']}, weights sha256 {teacher['weights_sha256']}" + (
                f", its vectors made {teacher['dimensions']} dimensions" if "dimensions" in teacher else "")
        card = model_card(recipe, settings, project, tags, metrics, lineage, run_id)
        images = plots.draw(recipe, getattr(settings.prepare, "labels", ()), at["curves"], at["test"],
                            Path(".evergreen/plots") / recipe)
        hashes = {f"dvc.{k}": v for k, v in dvc_hashes(recipe).items()}
        files = [at["model"] / seen.FILE,
                 *(at["test"] / name for name in ("metrics.json", "predictions.csv", "tasks.csv"))]
        tracking.publish(found, run_id, flat_metrics(metrics),
                         [*files, params.PARAMS, DVC_LOCK, *provenance.LOCKS, *images], {"model_card.md": card},
                         tags | hashes)
        version = registry.register(found, recipe, settings.kind, run_id, at["model"], example(at["test"]), tags, card,
                                    lambda: attempts.check(found, recipe, attempt))
        attempts.check(found, recipe, attempt)
        registry.set_alias(found, recipe, version.number)
        return registry.read_version(found, recipe, version.number, created=True)


def flat_metrics(metrics: dict) -> dict[str, float]:
    """{"base": {"x": 1}} -> {"test.base.x": 1}; slices, whose names are the data's own, stay in their file."""
    flat = params.flatten({k: v for k, v in metrics.items() if k != "slices"})
    return {f"test.{k}": v for k, v in flat.items() if not isinstance(v, str) and ".slices." not in k}


def curves(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) as training logs them live, from the files it left."""
    points = []
    for file in ("loss.csv", "epochs.csv"):
        with open(folder / file, encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                named = {"train_loss" if k == "loss" else k: v for k, v in row.items()}
                wanted = {k: float(v) for k, v in named.items()
                          if v and (k.startswith("dev_") or (file == "loss.csv" and k != "step"))}
                points.append((int(row["step"]), wanted))
    return points


def dvc_hashes(recipe: str) -> dict[str, str]:
    """{output path: md5} of the recipe's stages, and of what they start from, in dvc.lock."""
    if not DVC_LOCK.exists():
        return {}
    stages = params.read(DVC_LOCK)["stages"]
    own = [s for name, s in stages.items() if name.partition("@")[2] == recipe]
    entries = [e for stage in own for e in [*stage.get("deps", ()), *stage.get("outs", ())]]
    return {e["path"]: e["md5"] for e in entries if "md5" in e and not e["path"].startswith("steps/")}


def example(test: Path) -> list[str]:
    """Two texts of the test split, as the input example of the model."""
    with open(test / "predictions.csv", encoding="utf-8", newline="") as lines:
        row = next(csv.DictReader(lines))
    return [text for column, text in row.items() if column not in ("gold", "base", "model")][:2]


def run_of(recipe: str, project_folder: Path, project: params.Project) -> str:
    """The run that trained what lies in a project's folder, or one rebuilt from the files that training left."""
    at = {name: project_folder / path for name, path in folders(recipe).items()}
    found = tracking.client()
    weights = provenance.sha256(at["model"] / "model.safetensors")
    summary = json.loads((at["data"] / "summary.json").read_text(encoding="utf-8"))
    return tracking.run_of(found, recipe, weights) or tracking.rebuilt_run(
        found, recipe, project.recipe(recipe), project, summary, weights, curves(at["curves"]))


def references(recipe: str, project: params.Project) -> dict[str, Path]:
    """{name: folder} of the evaluations of other models on the recipe's held-out data, those that were made."""
    found = {name: EVALUATIONS / "references" / name for name, r in project.references.items() if r.recipe == recipe}
    return {name: folder for name, folder in found.items() if (folder / "metrics.json").exists()}


def model_card(recipe: str, settings: Recipe, project: params.Project, tags: dict[str, str], metrics: dict,
               lineage: dict, run_id: str) -> str:
    """What the version is, made of what, how good, and how to use it: Markdown."""
    base, dataset = lineage["base_model"], lineage["dataset"]
    confidence = settings.evaluate.confidence
    found = scores.tables(recipe, settings, folders(recipe)["test"], references(recipe, project))
    flat = params.flatten(settings.what_makes_it())
    use = (f"`evergreen predict {recipe} TEXT`, or in Python `mlflow.transformers.load_model"
           if settings.kind == "classification" else
           f"`evergreen embed {recipe} texts.txt vectors.parquet`, or in Python "
           "`mlflow.sentence_transformers.load_model")
    return "\n".join([
        f"# {recipe}", "",
        f"{settings.kind} model trained by Evergreen's recipe `{recipe}`.", "",
        *(line for table in found for line in scores.markdown(table, confidence)),
        *scores.slices(metrics),
        f"- base model: {base.get('hub') or base.get('name') or base.get('recipe') or settings.base_model}, "
        f"revision {tags.get('parent') or tags['base_model_revision']}, "
        f"licence {base.get('licence', 'see its parents')}",
        f"- data set: {dataset['name']}, revision {tags['dataset_revision']}, licence {dataset['licence']}, "
        f"sha256 {tags['dataset_sha256'][:16]}…",
        *([f"- teacher: {tags['teacher']}"] if "teacher" in tags else []),
        f"- code: commit {tags['git_commit']}; run {run_id}",
        f"- environment: {explain.packages(provenance.LOCKS)}; sha256 {tags['environment_sha256'][:16]}…",
        f"- parameters: seed {project.seed}, threads {project.threads}, "
        f"{', '.join(f'{key} {value}' for key, value in sorted(flat.items()))}; sha256 {tags['params_sha256'][:16]}…",
        f"- weights sha256: {tags['weights_sha256']}", "",
        *explain.parents_card(tracking.client(), tags),
        f"Use the version in charge: {use}(\"models:/{recipe}@{registry.CHAMPION}\")`; "
        f"version N, in charge or not, is `models:/{recipe}/N`.", ""])


if __name__ == "__main__":
    command.main(main)
