"""Training from several seeds: one parent run with mean and spread, a nested run for each seed, nothing more."""

import json
import math
import shutil
import sys
from types import SimpleNamespace

import pytest

from flows import seeds
from steps import params, register, tracking
from tests.project import ROOT, Project, digests

RUN = "from flows import seeds; from steps import register; register.register('sts'); print(seeds.run('sts', 2))"
METRIC = "test.spearman_cosine.model"


@pytest.fixture(scope="module")
def seeded(finished, tmp_path_factory, environment):
    """A copy of the finished project without its store, trained from two seeds there."""
    folder = tmp_path_factory.mktemp("seeds") / "copy"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns(".evergreen"))
    project = Project(folder, environment)
    before = digests(folder)
    said = project.run(sys.executable, "-c", RUN).stdout
    return SimpleNamespace(project=project, before=before, said=said)


@pytest.fixture
def runs(seeded, inside):
    """The parent run, and {seed: run} of its children."""
    inside(seeded.project)
    found = tracking.client().search_runs([tracking.experiment(tracking.client(), "sts")])
    parent, = (run for run in found if "seeds" in run.data.tags)
    return parent, {int(run.data.params["seed"]): run for run in found
                    if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}


def test_there_is_a_nested_run_for_each_seed_with_its_own_score(seeded, runs):
    parent, children = runs
    assert (sorted(children), parent.data.tags["seeds"]) == ([42, 43], "42, 43")
    assert children[42].data.tags["weights_sha256"] != children[43].data.tags["weights_sha256"]
    other = seeded.project / "evaluation/sts/test/metrics.json"
    further = seeded.project / ".evergreen/seeds/43/evaluation/sts/test/metrics.json"
    for seed, file in ((42, other), (43, further)):
        written = json.loads(file.read_text(encoding="utf-8"))
        assert children[seed].data.metrics[METRIC] == written["spearman_cosine"]["model"]


def test_the_parent_has_mean_and_standard_deviation(seeded, runs):
    parent, children = runs
    first, second = (children[seed].data.metrics[METRIC] for seed in (42, 43))
    mean, spread = (first + second) / 2, abs(first - second) / math.sqrt(2)
    assert parent.data.metrics[f"{METRIC}.mean"] == pytest.approx(mean)
    assert parent.data.metrics[f"{METRIC}.sd"] == pytest.approx(spread)
    assert f"model        {mean:8.4f} ± {spread:.4f}" in seeded.said


def test_only_the_projects_own_seed_is_registered_and_its_files_stay(seeded, inside):
    inside(seeded.project)
    assert digests(seeded.project.folder) == seeded.before
    versions = tracking.client().search_model_versions("name = 'sts'")
    assert [v.version for v in versions] == [register.register("sts").number] == [1]


def test_spread_is_that_of_a_sample():
    """1 and 3: mean 2, standard deviation with n - 1 the root of 2."""
    found = seeds.spread([{"rows": 5, "metric": "x", "x": {"model": value}} for value in (1.0, 3.0)])
    assert found["test.x.model.mean"] == 2.0
    assert found["test.x.model.sd"] == pytest.approx(math.sqrt(2))


def test_a_copy_has_another_seed_and_finds_what_was_not_copied(tmp_path, monkeypatch):
    """samples/ lies in the copy; ../outside and a folder that git ignores do not."""
    project, folder = tmp_path / "project", tmp_path / "project/.evergreen/seeds/43"
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "samples/appliances", folder / "samples/appliances")
    shutil.copy(ROOT / "params.yaml", folder)
    monkeypatch.chdir(project)
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    for old, new in (("samples/moods", "../outside"), ("samples/reports", "ignored/reports")):
        text = text.replace(f"path: {old}", f"path: {new}")
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    before = params.read(folder / "params.yaml")
    seeds.change(folder, 43)
    after = params.read(folder / "params.yaml")
    paths = {name: after["datasets"]["local"][name]["path"] for name in ("appliances", "moods", "reports")}
    assert paths == {"appliances": "samples/appliances", "moods": str(project / "../outside"),
                     "reports": str(project / "ignored/reports")}
    assert after["seed"] == 43
    for values in (before, after):
        del values["seed"], values["datasets"]["local"]
    assert before == after
