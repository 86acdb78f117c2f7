"""The descent of a version: parents of parents, data, parameters, code, environment, decisions; text and card."""

import json
import re
import shutil

import pytest

from steps import history, registry, tracking
from tests import shelf
from tests.project import Project

TAGS = {"dataset": "pairs", "dataset_revision": "a" * 40, "dataset_licence": "CC-BY-4.0", "dataset_sha256": "d" * 64,
        "base_model": "models/x", "base_model_revision": "b" * 40, "base_model_licence": "Apache-2.0",
        "base_model_sha256": "e" * 64, "git_commit": "c" * 40, "weights_sha256": "f" * 64, "test_sha256": "0" * 64,
        "test_spearman_cosine": "0.7047", "test_spearman_cosine_low": "0.6565", "test_spearman_cosine_high": "0.7498"}


def rows(text: str) -> dict[str, str]:
    """{label: value} of the first version that is explained."""
    return dict(re.findall(r"^  (\S.*?)  +(.*)$", text.split("\n\n")[0], re.MULTILINE))


def test_a_version_of_this_project_says_all_that_made_it(finished, inside, evergreen):
    inside(finished)
    found = rows(evergreen("explain", "sts@1").out)
    tags = tracking.client().get_model_version("sts", "1").tags
    assert found["holds"] == "the alias challenger"
    assert re.match(r"(promote|hold|reject) \S+ \S+Z by \S+: .* \(entry 1 of the history, verdict \w{16} in run \w+\)$",
                    found["decision"])
    assert found["data set"] == f"appliances, revision local, licence Apache-2.0, sha256 {tags['dataset_sha256']}"
    assert found["base model"] == ("models/base/tiny, revision local, licence Apache-2.0, weights sha256 "
                                   f"{tags['base_model_sha256']}")
    assert found["code"] == f"commit {finished.git('rev-parse', 'HEAD').stdout.strip()}"
    assert "torch 2.13.0, transformers 5.23.0" in found["environment"]
    assert re.search(r", (fp32|bf16), 1 threads$", found["hardware"])
    assert "seed 42" in found["parameters"] and "train.learning_rate 0.001" in found["parameters"]
    assert found["weights"] == f"sha256 {tags['weights_sha256']}"
    card = tracking.client().get_model_version("sts", "1").description
    for said in (f"- code: commit {tags['git_commit']}; run ", "- environment: torch 2.13.0, transformers 5.23.0, ",
                 "- parameters: seed 42, threads 1, ", ", train.learning_rate 0.001, "):
        assert said in card


def test_who_put_it_in_charge_and_on_what_stands_in_the_text_and_on_the_card(found, evergreen):
    shelf.add(found, 1, **TAGS)
    history.move(found, "sts", 1, "gain 0.083 (0.063 to 0.105)", "promote", who="ann")
    said = rows(evergreen("explain", "sts@champion").out)
    assert re.fullmatch(r"promote \S+ \S+Z by ann: gain 0\.083 \(0\.063 to 0\.105\) \(entry 1 of the history\)",
                        said["decision"])
    assert said["score"] == f"spearman_cosine 0.7047 (0.6565 to 0.7498) on test rows {'0' * 64}"
    card = found.get_model_version("sts", "1").description
    assert re.search(r"^- put in charge .* by ann: promote, gain 0\.083 \(0\.063 to 0\.105\) \(entry 1", card, re.M)


def test_parents_are_followed_to_the_first(found, evergreen):
    shelf.put(found, b"one", **TAGS)
    shelf.put(found, b"two", **TAGS, parent="sts@1")
    shelf.put(found, b"three", **TAGS | {"dataset": "newest"}, parent="sts@2")
    said = evergreen("explain", "sts@3").out
    assert re.findall(r"^\S.*", said, re.MULTILINE) == ["sts@3", "parent sts@2", "parent sts@1"]
    assert re.findall(r"^  data set +(\w+), ", said, re.MULTILINE) == ["newest", "pairs", "pairs"]


def test_a_parent_that_was_never_registered_is_said(found, evergreen):
    shelf.put(found, b"one", **TAGS, parent="nli")
    assert evergreen("explain", "sts@1").out.endswith(
        "\n\nparent nli\n  is not registered; its own lineage is not known\n")


def test_changes_that_were_not_committed_are_said(found, evergreen):
    shelf.put(found, b"one", **TAGS | {"git_commit": "c" * 40 + "+changes"})
    assert rows(evergreen("explain", "sts@1").out)["code"] == (
        f"commit {'c' * 40}, with changes that were not committed")


@pytest.mark.parametrize(("name", "message"), [
    ("sts@2", "'sts' has no version or alias '2'; versions: [1]"),
    ("sts@champion", "'sts' has no version or alias 'champion'; versions: [1]"),
    ("other", "no model 'other' is registered; registered: sts")])
def test_what_is_not_there_is_named(found, evergreen, name, message):
    shelf.add(found)
    done = evergreen("explain", name)
    assert (done.code, done.out) == (2, "") and done.err.startswith(f"error: {message}")


def test_the_card_of_a_child_holds_its_parents(finished, tmp_path, environment, inside):
    """sts trained again from what lies in models/sts, as its lineage says it of a parent."""
    from steps import register

    shutil.copytree(finished.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".evergreen"))
    project = Project(tmp_path / "copy", environment)
    inside(project)
    first = register.register("sts")
    tags = tracking.client().get_model_version("sts", "1").tags
    path = project / "models/sts/lineage.json"
    lineage = json.loads(path.read_text(encoding="utf-8"))
    parent = {"recipe": "sts", "weights_sha256": tags["weights_sha256"]}
    path.write_text(json.dumps(lineage | {"base_model": parent}), encoding="utf-8")
    second = register.register("sts")
    assert (first.number, second.number) == (1, 2)
    card = tracking.client().get_model_version("sts", "2").description
    assert (f"## Descent\n\n- parent sts@1\n  - data set: appliances, revision local, licence Apache-2.0, "
            f"sha256 {tags['dataset_sha256']}\n") in card
    assert registry.resolve("sts@2")[0].number == 2
