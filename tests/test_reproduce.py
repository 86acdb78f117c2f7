"""An old version is built again in a scratch folder: from the cache or anew it is the same; if not, it says where."""

import shutil
import sys

import pytest

from flows import reproduce
from steps import params, tracking
from steps.schema import InputError
from tests.project import Project, sample, write_rows
from tests.test_cache import cached
from tests.test_checkpoint import flip


@pytest.fixture(scope="module")
def moved_on(finished, tmp_path_factory, environment) -> Project:
    """A copy of the finished project in which data, parameters and code have been changed since."""
    folder = tmp_path_factory.mktemp("moved") / "project"
    shutil.copytree(finished.folder, folder)
    project = Project(folder, environment)
    write_rows(project / "samples/appliances/train.csv", sample("train", 20))
    project.edit("recipes.sts.train.epochs", 7)
    (project / "steps/losses.py").write_text("broken\n", encoding="utf-8")
    project.git("commit", "-qam", "Next")
    return project


@pytest.fixture
def version(moved_on, inside):
    inside(moved_on)
    return tracking.client().get_model_version("sts", "1")


def test_a_version_is_restored_from_the_cache_as_it_was(moved_on, version, evergreen):
    done = evergreen("reproduce", "sts@1")
    assert done.code == 0
    assert f"equal: sts@1 has weights sha256 {version.tags['weights_sha256']}, and so has what was built" in done.out
    assert done.out.endswith("; the evaluation too\n")
    assert "train@sts: unchanged" in done.out and "train loss" not in done.out
    scratch = moved_on / ".evergreen/reproduce/sts@1"
    assert params.load(scratch / "params.yaml").recipe("sts").train.epochs == 1
    assert len((scratch / "data/raw/appliances/train.csv").read_text(encoding="utf-8").splitlines()) == 49
    assert moved_on.git("status", "--porcelain").stdout.split() == ["??", "dvc.lock"]


def test_forced_it_is_trained_anew_and_comes_out_equal_without_a_trace_in_the_store(version, evergreen):
    runs = len(tracking.client().search_runs(["1"]))
    done = evergreen("reproduce", "sts@1", "--force")
    assert done.code == 0
    assert "train@sts: ran" in done.out and "evaluate@sts: ran" in done.out
    assert f"equal: sts@1 has weights sha256 {version.tags['weights_sha256']}" in done.out
    assert len(tracking.client().search_runs(["1"])) == runs


def test_what_rotted_in_the_cache_is_made_anew(moved_on, version, evergreen):
    flip(cached(moved_on, moved_on / ".evergreen/reproduce/sts@1/models/sts/model.safetensors"))
    done = evergreen("reproduce", "sts@1")
    assert done.code == 0
    assert "models/sts: damaged in DVC's cache" in done.out and "train@sts: ran" in done.out
    assert f"equal: sts@1 has weights sha256 {version.tags['weights_sha256']}" in done.out


@pytest.fixture
def tag(version):
    """tag("git_commit", "...") for this test alone."""
    found = tracking.client()
    yield lambda key, value: found.set_model_version_tag("sts", "1", key, value)
    for key, value in version.tags.items():
        found.set_model_version_tag("sts", "1", key, value)


def test_changes_that_were_not_committed_are_said_and_it_is_tried(version, tag, evergreen):
    tag("git_commit", version.tags["git_commit"] + "+changes")
    done = evergreen("reproduce", "sts@1")
    assert done.out.startswith("note: sts@1 was made with changes that were not committed and cannot be had back; this "
                               "is its commit without them")
    assert "equal: sts@1" in done.out


def test_other_weights_than_the_version_has_are_told(tag, evergreen):
    tag("weights_sha256", "0" * 64)
    done = evergreen("reproduce", "sts@1")
    assert done.code == 1
    assert f"different: sts@1 has weights sha256 {'0' * 64}" in done.out


@pytest.mark.parametrize("commit", ["f" * 40, "none"])
def test_a_commit_that_is_not_here_is_named(tag, evergreen, commit):
    tag("git_commit", commit)
    done = evergreen("reproduce", "sts@1")
    assert (done.code, done.out) == (2, "")
    assert done.err == (f"error: sts@1 was made at commit {commit}, which this repository does not have; "
                        "fetch it with git\n")


def stage(**outs_deps_params) -> dict:
    return {"deps": [{"path": p, "md5": m} for p, m in outs_deps_params.get("deps", {}).items()],
            "outs": [{"path": p, "md5": m} for p, m in outs_deps_params.get("outs", {}).items()],
            "params": {"params.yaml": outs_deps_params.get("params", {})}}


THEN = {"import_dataset@a": stage(deps={"a": "1"}, outs={"data/raw/a": "2"}),
        "import_model@other": stage(outs={"models/base/other": "9"}),
        "train@sts": stage(deps={"steps/train.py": "3", "requirements.torch.txt": "4", "data/raw/a": "2"},
                           outs={"models/sts": "5"}, params={"threads": 2}),
        "evaluate@sts": stage(deps={"models/sts": "5"}, outs={"evaluation/sts": "6"})}
STAGES = ["import_dataset@a", "train@sts", "evaluate@sts"]


def changed(name: str, **now) -> dict:
    """THEN with other values in one stage, and what follows from other weights."""
    merged = {kind: {e["path"]: e["md5"] for e in THEN[name][kind]} | now.get(kind, {}) for kind in ("deps", "outs")}
    return {**THEN, name: stage(**merged, params=THEN[name]["params"]["params.yaml"] | now.get("params", {}))}


def test_the_stages_are_those_that_the_target_needs_in_their_order():
    assert reproduce.order(THEN, "evaluate@sts") == STAGES
    with pytest.raises(InputError, match="knows no evaluate@nli"):
        reproduce.order(THEN, "evaluate@nli")


@pytest.mark.parametrize(("now", "commit", "lines"), [
    (changed("train@sts", deps={"requirements.torch.txt": "x"}, outs={"models/sts": "y"}), "c",
     ["first difference, in train@sts:", "  requirements.torch.txt: md5 4 then, x now",
      "likely cause: the environment: the pinned packages are not those of then"]),
    (changed("train@sts", deps={"steps/train.py": "x"}), "c+changes",
     ["first difference, in train@sts:", "  steps/train.py: md5 3 then, x now",
      "likely cause: the code: the version was made with changes that were not committed, and they cannot be had "
      "back"]),
    (changed("import_dataset@a", deps={"a": "x"}, outs={"data/raw/a": "y"}), "c",
     ["first difference, in import_dataset@a:", "  a: md5 1 then, x now",
      "likely cause: the data: what the stage read is not what it read then"]),
    (changed("train@sts", params={"threads": 1}), "c",
     ["first difference, in train@sts:", "  params.yaml.threads: 2 then, 1 now",
      "likely cause: the parameters: params.yaml is not the one that was kept"])])
def test_the_first_difference_and_its_likely_cause_are_told(now, commit, lines):
    assert reproduce.difference(THEN, now, STAGES, {}, commit) == lines


@pytest.mark.parametrize(("device", "said"), [("NVIDIA H100", "likely cause: the hardware: NVIDIA H100 in bf16 then"),
                                              ("here", "likely cause: threads or the processor's kind")])
def test_other_weights_from_the_same_inputs_come_from_hardware_or_threads(device, said):
    from steps import training

    device = training.hardware("auto")["device"] if device == "here" else device
    told = reproduce.difference(THEN, changed("train@sts", outs={"models/sts": "x"}), STAGES,
                                {"device": device, "precision": "bf16"}, "c")
    assert told[:2] == ["first difference, in train@sts:", "  models/sts: md5 5 then, x now"]
    assert told[2].startswith(said)


def test_another_pinned_environment_is_made_in_the_folder(moved_on, inside):
    """`make setup` of that commit makes .venv; here it is a link."""
    inside(moved_on)
    other = moved_on / ".evergreen/other"
    other.mkdir(exist_ok=True)
    assert reproduce.environment(moved_on.folder) == sys.executable
    (other / "requirements.torch.txt").write_text("torch==1.0\n", encoding="utf-8")
    (other / "Makefile").write_text("setup:\n\tmkdir -p .venv/bin && touch .venv/bin/python\n", encoding="utf-8")
    assert reproduce.environment(other) == str(other / ".venv/bin/python")
    (other / "Makefile").write_text("setup:\n\trm -r .venv\n\tfalse\n", encoding="utf-8")
    with pytest.raises(InputError, match="the environment of that commit cannot be made; see what `make setup` says"):
        reproduce.environment(other)
