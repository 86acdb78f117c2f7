"""A published source is a stage that runs only when a recipe names it, from the hub, as params.yaml pins it."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steps import params
from tests.hub_server import HubServer
from tests.project import ROOT, Project, sample

COMMIT = "c" * 40


def parquet(split: str, count: int) -> bytes:
    header, *rows = sample(split, count)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    table = pa.table({"sentence1": columns["sentence1"], "sentence2": columns["sentence2"],
                      "score": [float(s) / 5 for s in columns["score"]]})
    pq.write_table(table, content := io.BytesIO())
    return content.getvalue()


@pytest.fixture
def published(project) -> Project:
    """The small project with published/dvc.yaml, whose sts wants the published stsb."""
    (project / "published").mkdir(exist_ok=True)
    (project / "published/dvc.yaml").write_bytes((ROOT / "published/dvc.yaml").read_bytes())
    stsb = params.read(ROOT / "params.yaml")["published"]["datasets"]["stsb"] | {"revision": COMMIT}
    project.edit("published", {"datasets": {"stsb": stsb, "other": stsb}, "base_models": {}})
    for key in ("dataset", "suite"):
        project.edit(f"recipes.sts.{key}", "data/raw/stsb")
    project.edit("recipes.sts.prepare.score_range", [0.0, 1.0])
    project.git("add", "-A")
    project.git("commit", "-qm", "The published stsb")
    return project


def test_a_recipe_that_names_one_fetches_it_and_no_other(published, tmp_path):
    files = {f"data/{name}-00000-of-00001.parquet": parquet(split, count)
             for name, split, count in (("train", "train", 48), ("validation", "dev", 16), ("test", "test", 24))}
    with HubServer() as hub:
        hub.repositories["dataset", "sentence-transformers/stsb"] = {COMMIT: files}
        done = published.evergreen("run", "sts", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"),
                                   NO_PROXY="*", no_proxy="*")
    assert "published/dvc.yaml:dataset@stsb ran" in done.stdout
    assert "sts@1 (challenger), registered now" in done.stdout
    assert {path.name for path in (published / "data/raw").iterdir() if path.is_dir()} == {"stsb"}
    again = published.evergreen("run", "sts")
    assert "nothing to do" in again.stdout
