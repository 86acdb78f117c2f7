"""What `--seeds` changes in a copy of the project, and the spread that it shows."""

import shutil

import pytest

from flows import seeds
from steps import params
from tests.conftest import ROOT


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


def test_mean_and_spread_are_those_of_a_sample():
    found = [{"spearman_cosine": {"model": score}, "rows": 2} for score in (0.1, 0.2, 0.3)]
    spread = seeds.spread(found)
    assert [spread[f"test.spearman_cosine.model.{part}"] for part in ("mean", "sd")] == pytest.approx([0.2, 0.1])
