"""What is stale after which change, in which order stages run, and what DVC's own commands show."""

import csv
import json
import re
import shutil
import sys

import pytest
from ruamel.yaml import YAML

from tests.project import Project

STAGES = ["import_dataset@appliances", "import_model@tiny", "prepare@sts", "train@sts", "evaluate@sts"]
RATE = "recipes.sts.train.learning_rate"


def copy_of(finished: Project, folder) -> Project:
    return Project(shutil.copytree(finished.folder, folder, symlinks=True), finished.environment)


@pytest.fixture
def copy(finished, tmp_path) -> Project:
    """The finished project once more, to be changed."""
    return copy_of(finished, tmp_path / "project")


def plan(project: Project, *targets: str) -> list[list]:
    """[name, upstream, work pool] of each stage."""
    code = ("import dataclasses, json, sys; from flows import graph;"
            "print(json.dumps([dataclasses.astuple(s) for s in graph.plan(sys.argv[1:])]))")
    return json.loads(project.run(sys.executable, "-c", code, *targets).stdout)


def stale(project: Project) -> list[str]:
    code = "import json, sys; from flows import graph; print(json.dumps(graph.stale(sys.argv[1:])))"
    return json.loads(project.run(sys.executable, "-c", code, *STAGES).stdout)


def stages_run(said: str) -> list[str]:
    return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]


def edit_graph(project: Project, change) -> None:
    yaml = YAML()
    graph = yaml.load(project / "dvc.yaml")
    change(graph["stages"])
    yaml.dump(graph, project / "dvc.yaml")


def test_nothing_is_stale_after_a_run(finished):
    assert stale(finished) == []


@pytest.mark.parametrize("key, value, expected", [
    ("seed", 7, ["train@sts", "evaluate@sts"]),
    ("threads", 2, ["train@sts", "evaluate@sts"]),
    ("recipes.sts.contract.bad_rows", 0.02, ["prepare@sts"]),
    ("recipes.sts.prepare.max_length", 64, ["prepare@sts", "train@sts", "evaluate@sts"]),
    ("recipes.sts.tasks", {"more": {"task": "sts", "test": "dev"}}, ["prepare@sts", "evaluate@sts"]),
    (RATE, 0.002, ["train@sts"]),
    ("recipes.sts.evaluate.resamples", 300, ["evaluate@sts"]),
])
def test_a_parameter_makes_those_stages_stale_that_read_it(copy, key, value, expected):
    copy.edit(key, value)
    assert stale(copy) == expected


@pytest.mark.parametrize("file, expected", [
    ("README.md", []),
    ("samples/appliances/train.csv", ["import_dataset@appliances"]),
    ("requirements.train.lock", ["prepare@sts", "train@sts", "evaluate@sts"]),
    ("requirements.torch.txt", ["prepare@sts", "train@sts", "evaluate@sts"]),
    ("steps/recipes/sts.py", ["prepare@sts", "train@sts", "evaluate@sts"]),
    ("steps/tasks/sts.py", ["prepare@sts", "train@sts", "evaluate@sts"]),
    ("steps/splitting.py", ["prepare@sts"]),
    ("steps/contract.py", ["prepare@sts"]),
    ("steps/decontamination.py", ["prepare@sts"]),
    ("steps/train.py", ["train@sts"]),
    ("steps/training.py", ["train@sts"]),
    ("steps/resuming.py", ["train@sts"]),
    ("steps/ranks.py", ["train@sts"]),
    ("steps/launching.py", ["train@sts"]),
    ("steps/checkpoint.py", ["train@sts"]),
    ("steps/embedding.py", ["train@sts", "evaluate@sts"]),
    ("steps/classification.py", []),
    ("steps/evaluate.py", ["evaluate@sts"]),
])
def test_a_file_makes_those_stages_stale_that_read_it(copy, file, expected):
    with open(copy / file, "a", encoding="utf-8") as end:
        end.write("\n")
    assert stale(copy) == expected


def test_dvc_repro_runs_what_is_stale_alone(copy):
    copy.edit("recipes.sts.evaluate.resamples", 300)
    assert stages_run(copy.dvc("repro").stdout) == ["evaluate@sts"]
    assert stale(copy) == []


def test_the_plan_is_the_order_of_dvc_repro(finished):
    said = finished.dvc("repro", "--dry", "evaluate@sts").stdout
    assert [name for name, _, _ in plan(finished, "evaluate@sts")] == re.findall(r"^Stage '(.+)' didn't", said, re.M)


def test_the_plan_resolves_every_recipe_and_a_model_that_stands_on_another(copy):
    shutil.copy(copy / "steps/recipes/sts.py", copy / "steps/recipes/again.py")
    yaml = YAML()
    params = yaml.load(copy / "params.yaml")
    params["recipes"]["again"] = {**params["recipes"]["sts"], "base_model": "models/sts"}
    yaml.dump(params, copy / "params.yaml")

    upstream = {name: set(before) for name, before, _ in plan(copy, "evaluate@again", "evaluate@sts")}
    assert upstream == {
        "import_dataset@appliances": set(),
        "import_model@tiny": set(),
        "prepare@sts": {"import_dataset@appliances", "import_model@tiny"},
        "train@sts": {"import_model@tiny", "prepare@sts"},
        "evaluate@sts": {"import_model@tiny", "prepare@sts", "train@sts"},
        "prepare@again": {"import_dataset@appliances", "train@sts"},
        "train@again": {"train@sts", "prepare@again"},
        "evaluate@again": {"train@sts", "prepare@again", "train@again"},
    }
    names = list(upstream)
    for place, name in enumerate(names):
        assert upstream[name] <= set(names[:place])
    assert [name for name, _, _ in plan(copy, "evaluate@again")] == [n for n in names if n != "evaluate@sts"]


def test_the_work_pool_of_a_stage_is_read_and_changing_it_makes_nothing_stale(copy):
    edit_graph(copy, lambda stages: stages["evaluate"]["do"].update(meta={"work_pool": "big"}))
    assert {name: pool for name, _, pool in plan(copy, "evaluate@sts")} == {
        **dict.fromkeys(STAGES, None), "train@sts": "gpu", "evaluate@sts": "big"}
    assert stale(copy) == []


@pytest.fixture(scope="module")
def experiment(finished, tmp_path_factory) -> Project:
    """The finished project, committed, with an experiment in which learning_rate is 0.002 instead of 0.001."""
    project = copy_of(finished, tmp_path_factory.mktemp("experiment") / "project")
    project.git("add", "dvc.lock")
    project.git("commit", "-qm", "First model")
    project.ran = project.dvc("exp", "run", "-n", "faster", "-S", f"{RATE}=0.002")
    return project


def test_dvc_exp_run_runs_what_is_stale_and_what_follows_from_it(experiment):
    assert stages_run(experiment.ran.stdout) == ["train@sts", "evaluate@sts"]


def test_dvc_exp_show_has_the_experiment_beside_the_commit(experiment):
    rows = csv.DictReader(experiment.dvc("exp", "show", "--csv").stdout.splitlines())
    by_name = {row["Experiment"] or row["rev"]: row for row in rows}
    base = experiment.git("branch", "--show-current").stdout.strip()
    assert {name: row[RATE] for name, row in by_name.items()} == {
        "workspace": "0.002", base: "0.001", "faster": "0.002"}
    assert by_name["faster"]["model.pearson_cosine"] != by_name[base]["model.pearson_cosine"]


def test_dvc_params_diff_shows_the_changed_value_alone(experiment):
    (file, changed), = json.loads(experiment.dvc("params", "diff", "--json").stdout).items()
    (key, values), = changed.items()
    assert (file, key, values["old"], values["new"]) == ("params.yaml", RATE, 0.001, 0.002)


def test_dvc_metrics_diff_shows_the_score_in_the_metrics_file(experiment):
    changed = json.loads(experiment.dvc("metrics", "diff", "--json").stdout)["evaluation/sts/test/metrics.json"]
    scores = json.loads((experiment / "evaluation/sts/test/metrics.json").read_text())
    score = changed["model.pearson_cosine"]
    assert score["new"] == scores["model"]["pearson_cosine"] != score["old"]
    assert "base.pearson_cosine" not in changed


def test_dvc_plots_diff_draws_every_declared_plot_at_both_revisions(experiment):
    drawn = json.loads(experiment.dvc("plots", "diff", "HEAD", "--json").stdout)["data"]
    assert sorted(drawn) == ["evaluation/sts/test/predictions.csv", "evaluation/sts/training/epochs.csv",
                             "evaluation/sts/training/loss.csv"]
    for plots in drawn.values():
        assert {revision for plot in plots for revision in plot["revisions"]} == {"HEAD", "workspace"}


def test_dvc_dag_draws_the_graph_as_mermaid(finished):
    lines = finished.dvc("dag", "--mermaid").stdout.split("\n")
    assert lines[0] == "flowchart TD"
    assert sorted(line.split('"')[1] for line in lines if '["' in line) == sorted(STAGES)
    assert sum("-->" in line for line in lines) == 7


def test_without_a_git_repository_the_remedy_is_named(copy):
    shutil.rmtree(copy / ".git")
    done = copy.evergreen("run", "sts", check=False)
    assert done.returncode == 2
    assert "git init" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_changed_tracked_files_are_mentioned_once(finished, copy):
    assert "differ" not in finished.ran.stdout + finished.ran.stderr
    (copy / "README.md").write_text("Changed.\n", encoding="utf-8")
    done = copy.evergreen("run", "sts")
    assert (done.stdout + done.stderr).count("tracked files differ from the last commit") == 1


def rename(group: dict, old: str, new: str) -> None:
    group[new] = group.pop(old)


INJECTED = {
    "path of a data set": lambda p, text: p["datasets"]["local"]["appliances"].update(path=text),
    "path of a base model": lambda p, text: p["base_models"]["local"]["tiny"].update(path=text),
    "dataset of a recipe": lambda p, text: p["recipes"]["sts"].update(dataset=text),
    "base model of a recipe": lambda p, text: p["recipes"]["sts"].update(base_model=text),
    "name of a data set": lambda p, text: (rename(p["datasets"]["local"], "appliances", text),
                                           p["recipes"]["sts"].update(dataset=f"data/raw/{text}")),
    "name of a base model": lambda p, text: (rename(p["base_models"]["local"], "tiny", text),
                                             p["recipes"]["sts"].update(base_model=f"models/base/{text}")),
    "name of a recipe": lambda p, text: rename(p["recipes"], "sts", text),
}


@pytest.mark.parametrize("text", ["x; touch PWNED", "$(touch PWNED)"])
@pytest.mark.parametrize("place", INJECTED)
def test_a_command_in_params_is_refused_and_reaches_no_shell(project, tmp_path, place, text):
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    INJECTED[place](params, text)
    yaml.dump(params, project / "params.yaml")
    done = project.evergreen("run", "all", check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("PWNED"))
