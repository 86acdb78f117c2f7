"""Every recipe from its samples to a registered version, in one run; each test looks at what it left."""

import csv
import hashlib
import json
import math
import re
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from flows import graph
from steps import params, tracking
from tests.project import BASE_MODELS, ROOT, Project, copy_project, digests

METRICS = {"cola": "matthews_correlation", "emotion": "f1_macro", "mlm": "spearman_cosine",
           "multilingual": "mean_accuracy", "nli": "accuracy_cosine", "sts": "spearman_cosine",
           "tsdae": "spearman_cosine"}
DATASETS = {"cola": "acceptability", "emotion": "moods", "mlm": "reports", "multilingual": "translations",
            "nli": "statements", "sts": "appliances", "tsdae": "reports"}
CLASSIFIERS = ("cola", "emotion")
PARENTS = {"tsdae": "mlm", "sts": "tsdae"}          # mlm -> tsdae -> sts
STAGES = 6 + 1 + 1 + 7 * 3 + 1      # data sets, base model, teacher, three of each recipe, reference
MOODS = ("sadness", "joy", "love", "anger", "fear", "surprise")
ROWS = {"train": 60, "dev": 20, "test": 36, "train_pairs": 60, "sts_de": 36}


def make_all(folder, tiny_model, environment) -> Project:
    """The seven recipes on the first rows of their samples, from the tiny model or one that another recipe made."""
    project = copy_project(folder, tiny_model, environment)
    for source in sorted((ROOT / "samples").glob("*/*")):
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(lines[:ROWS[source.stem] + 1]), encoding="utf-8")

    def change(values: dict) -> None:
        for name, recipe in values["recipes"].items():
            recipe["base_model"] = f"models/{PARENTS.get(name, 'base/tiny')}"
            recipe["train"] |= {"epochs": 1, "learning_rate": 0.001, "evaluations": 1}
            recipe["evaluate"]["resamples"] = 100
        values["teachers"]["translations"]["model"] = "models/base/tiny"
        values |= {"threads": 1, "base_models": BASE_MODELS,
                   "references": {"untrained": {"recipe": "mlm", "model": "models/base/tiny"}}}
    project.change(change)
    return project.start()


@pytest.fixture(scope="session")
def made(tmp_path_factory, tiny_model, environment) -> Project:
    """A project in which `evergreen run all` has run once; tests leave it as it was."""
    project = make_all(tmp_path_factory.mktemp("all") / "project", tiny_model, environment)
    project.ran = project.evergreen("run", "all")
    return project


@pytest.fixture
def store(made, inside):
    """A client of the store of the project with all recipes."""
    inside(made)
    return tracking.client()


def table(made: Project, title: str) -> list[str]:
    """The lines of a run's output below a table's title, up to the next recipe's."""
    return made.ran.stdout.partition(f"\n{title}\n")[2].partition("\n\n")[0].splitlines()


def measured(made: Project, recipe: str) -> dict:
    return json.loads((made / f"evaluation/{recipe}/test/metrics.json").read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("recipe", METRICS)
def test_the_run_shows_the_scores_of_every_recipe_and_its_version(made, recipe):
    found = measured(made, recipe)[METRICS[recipe]]
    lines = table(made, f"{recipe}: {METRICS[recipe]} on 36 held-out test rows")
    for key, label in (("base", "majority class" if recipe in CLASSIFIERS else "base model"), ("model", "new model"),
                       ("gain", "gain")):
        line = next(line for line in lines if line.startswith(f"  {label} "))
        assert line.removeprefix(f"  {label}").split() == [
            f"{found[key]:.4f}", f"{found[key + '_low']:.4f}", "to", f"{found[key + '_high']:.4f}"]
    assert f"  version     {recipe}@1 (challenger), registered now" in lines


@pytest.mark.parametrize(("recipe", "task"), [("nli", "appliances"), ("multilingual", "sts_de")])
def test_the_run_shows_the_scores_of_a_further_task(made, recipe, task):
    found = measured(made, recipe)["tasks"][task]["spearman_cosine"]
    lines = made.ran.stdout.partition(f"\n{recipe} on {task}: spearman_cosine on 36 held-out test rows\n")[2]
    assert lines.splitlines()[2].split()[:3] == ["new", "model", f"{found['model']:.4f}"]


@pytest.mark.parametrize("recipe", METRICS)
def test_the_challenger_of_every_recipe_is_tagged_with_what_made_it(made, store, recipe):
    version = store.get_model_version_by_alias(recipe, "challenger")
    expected = {
        "recipe": recipe,
        "dataset": DATASETS[recipe],
        "base_model": f"models/{PARENTS.get(recipe, 'base/tiny')}",
        "base_model_sha256": sha256(made / f"models/{PARENTS.get(recipe, 'base/tiny')}/model.safetensors"),
        "weights_sha256": sha256(made / f"models/{recipe}/model.safetensors"),
        "test_sha256": sha256(made / f"data/prepared/{recipe}/test.arrow"),
        f"test_{METRICS[recipe]}": str(measured(made, recipe)[METRICS[recipe]]["model"]),
    }
    assert {name: version.tags.get(name) for name in expected} == expected
    assert str(version.version) == "1"


@pytest.mark.parametrize("recipe", METRICS)
def test_the_card_has_the_scores_and_the_slices(made, store, recipe):
    card = store.get_model_version(recipe, "1").description
    found = measured(made, recipe)
    own = found[METRICS[recipe]]
    assert f"| new model | {own['model']:.4f} | {own['model_low']:.4f} to {own['model_high']:.4f} |" in card
    assert f"\nBy slice, {METRICS[recipe]} " in card
    short = found["slices"]["length: short"]
    assert f"\n| length: short | {short['rows']} | {short['base']:.4f} | {short['model']:.4f} | " in card
    assert f"- data set: {DATASETS[recipe]}, revision local, licence Apache-2.0" in card


def test_the_slices_of_a_classifier_are_also_by_label(made, store):
    card = store.get_model_version("emotion", "1").description
    with open(made / "samples/moods/test.csv", encoding="utf-8", newline="") as lines:
        labels = [row["label"] for row in csv.DictReader(lines)]
    assert {(name, int(rows)) for name, rows in re.findall(r"^\| label: (\w+) \| (\d+) \|", card, re.M)} == {
        (label, labels.count(label)) for label in MOODS if labels.count(label) >= 10}


def test_the_card_of_a_taught_model_names_the_teacher(made, store):
    weights = sha256(made / "tiny-bert/model.safetensors")
    assert f"- teacher: models/base/tiny, weights sha256 {weights[:16]}" in (
        store.get_model_version("multilingual", "1").description)


@pytest.mark.parametrize("recipe", METRICS)
def test_the_run_of_every_recipe_has_its_pictures_and_files(store, recipe):
    run_id = store.get_model_version(recipe, "1").run_id
    own = ["batches", "confusion"] if recipe in CLASSIFIERS else ["predicted"]
    assert [p.path for p in store.list_artifacts(run_id, "plots")] == [
        f"plots/{name}.png" for name in sorted([*own, "dev_score", "loss"])]
    assert {f"evaluation/{name}" for name in ("metrics.json", "predictions.csv", "tasks.csv", "params.yaml", "dvc.lock")
            } <= {p.path for p in store.list_artifacts(run_id, "evaluation")}


def test_the_registered_classifier_answers_with_a_label_of_its_schema(made):
    said = made.evergreen("predict", "emotion", "i am so glad that you came").stdout
    chance, label = re.fullmatch(
        r"(0\.\d{4})  (\w+)  'i am so glad that you came' under emotion@1 \(challenger\)\n", said).groups()
    assert label in MOODS and float(chance) > 1 / 6


def test_the_registered_classifier_gives_no_vectors(made, tmp_path):
    (tmp_path / "texts.txt").write_text("one\n", encoding="utf-8")
    done = made.evergreen("embed", "emotion", str(tmp_path / "texts.txt"), str(tmp_path / "out.npy"), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: emotion@1 gives classes, not vectors; use it with: "
                           "evergreen predict emotion TEXT\n")


# A model that stands on another recipe's


def test_training_on_another_recipes_model_waits_for_it(made, inside):
    inside(made)
    upstream = {stage.name: set(stage.upstream) for stage in graph.plan(["evaluate@sts"])}
    said = made.ran.stderr
    for child, parent in PARENTS.items():
        assert upstream[f"train@{child}"] == {f"train@{parent}", f"prepare@{child}"}
        assert said.index(f"train@{parent} | ran") < said.index(f"train@{child} | epoch")
        lineage = json.loads((made / f"models/{child}/lineage.json").read_text())
        assert lineage["base_model"]["weights_sha256"] == sha256(made / f"models/{parent}/model.safetensors")


def test_along_a_chain_the_pooling_is_the_parents_unless_a_recipe_names_one(made):
    """mlm has mean, since its plain BERT brings none; tsdae names cls, and sts names none."""
    modes = {recipe: json.loads((made / f"models/{recipe}/1_Pooling/config.json").read_text())["pooling_mode"]
             for recipe in ("mlm", "tsdae", "sts")}
    assert modes == {"mlm": "mean", "tsdae": "cls", "sts": "cls"}


@pytest.mark.parametrize("child", PARENTS)
def test_the_version_names_the_version_that_it_stands_on(store, child):
    version, parent = store.get_model_version(child, "1"), PARENTS[child]
    assert version.tags["parent"] == f"{parent}@1"
    assert f"- base model: {parent}, revision {parent}@1, " in version.description


# Another model in the table


def test_a_reference_stands_in_the_table_and_in_the_card(made, store):
    """It is the base model itself, so its line has the base model's numbers."""
    base, other = (" ".join(line.split()).partition(label)[2] for label in ("base model", "untrained")
                   for line in table(made, "mlm: spearman_cosine on 36 held-out test rows") if label in line)
    assert base == other != ""
    score, _, interval = other.strip().partition(" ")
    assert f"\n| untrained | {score} | {interval} |\n" in store.get_model_version("mlm", "1").description
    assert made.ran.stdout.count("untrained") == 2      # the stage, and its line in the table of mlm


# The same project again


def test_a_second_run_has_nothing_to_do(made):
    said = made.evergreen("run", "all").stdout
    assert said.startswith(f"nothing to do: {STAGES} stages unchanged, every version registered already\n")
    assert [f"{recipe}@1 (challenger), registered before" in said for recipe in METRICS] == [True] * len(METRICS)


def test_dvc_repro_has_nothing_to_do_either(made):
    said = made.dvc("repro").stdout
    assert "Running stage" not in said and said.endswith("Data and pipelines are up to date.\n")


IN_ONE_PROCESS = """
import runpy, shlex, sys
from steps import params
for name, stage in params.read(params.PARAMS.with_name("commands"))["stages"].items():
    line = stage["cmd"].partition("; exec ")[2].replace("$n", name.partition("@")[2])
    python, flag, module, *sys.argv[1:] = shlex.split(line)
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        assert ended.code == 0, name
"""


def test_the_commands_alone_leave_the_bytes_of_the_flow(made, tmp_path, tiny_model, environment):
    """The stages of the lock one after another in one process, elsewhere, and without MLflow."""
    other = make_all(tmp_path / "elsewhere" / "project", tiny_model, environment)
    shutil.copy(made / "dvc.lock", other / "commands")
    other.run(sys.executable, "-c", IN_ONE_PROCESS, EVERGREEN_TRACKING="none")
    ours = digests(made.folder)
    assert {f"models/{recipe}/model.safetensors" for recipe in METRICS} <= set(ours)
    assert digests(other.folder) == ours


# Labelled pairs instead of triplets


def test_softmax_learns_from_labelled_pairs_and_is_judged_by_triplets(made, tmp_path):
    copy = Project(shutil.copytree(made.folder, tmp_path / "project", symlinks=True), made.environment)
    copy.edit("datasets.local.statements.splits.train", "train_pairs.csv")
    copy.edit("recipes.nli.prepare.train_rows", "pairs")
    copy.edit("recipes.nli.train.loss", "softmax")
    said = copy.run("python", "-m", "dvc", "repro", "train@nli", EVERGREEN_TRACKING="none").stdout
    assert re.findall(r"^Running stage '(.+)':$", said, re.M) == [
        "import_dataset@statements", "prepare@nli", "train@nli"]
    columns = {}
    for split in ("train", "test"):
        with pa.ipc.open_stream(copy / f"data/prepared/nli/{split}.arrow") as rows:
            columns[split] = {name for name in rows.schema.names if not name.endswith("_input_ids")}
    assert columns == {"train": {"premise", "hypothesis", "label"}, "test": {"anchor", "positive", "negative"}}
    with open(copy / "evaluation/nli/training/loss.csv", encoding="utf-8", newline="") as lines:
        assert float(next(csv.DictReader(lines))["loss"]) == pytest.approx(math.log(3), abs=0.3)
    assert params.read(copy / "dvc.lock")["stages"]["train@nli"] != params.read(made / "dvc.lock")["stages"][
        "train@nli"]
