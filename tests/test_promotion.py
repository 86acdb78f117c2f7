"""Real versions in a real store: a planted gain takes the champion's place, a planted loss does not, nor does doubt."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from flows import promotion
from steps import batching, contest, history, journal, model_files, params, provenance, registry, seen, tracking
from steps.recipes import sts
from tests.planted import (
    BAD,
    GOOD,
    MODEL,
    TEST,
    TWIN,
    changed,
    in_charge,
    lent,
    make_shelf,
    spoil,
    tagged,
    verdict_files,
)
from tests.project import Project


@pytest.fixture(scope="module")
def shelf(finished, tmp_path_factory) -> Project:
    return make_shelf(finished, tmp_path_factory.mktemp("shelf") / "project")


@pytest.fixture
def store(shelf, inside):
    inside(shelf)
    with lent(shelf) as found:
        yield found


def document(found, number: int, end: str = "json") -> Path:
    """The file that the version's tag names."""
    sha256 = found.get_model_version("sts", str(number)).tags["verdict_sha256"]
    return verdict_files(found, number) / f"{sha256[:16]}.{end}"


def verdict(found, number: int) -> dict:
    """The document that the version's page in MLflow shows."""
    tags = found.get_model_version("sts", str(number)).tags
    kept = json.loads(document(found, number).read_text(encoding="utf-8"))
    assert (kept["id"], kept["verdict"]) == (tags["verdict_id"], tags["verdict"])
    return kept


def missed(kept: dict) -> list[str]:
    return [rule["name"] for rule in kept["rules"] if not rule["met"]]


def test_a_planted_gain_is_promoted_and_kept_with_its_page(store):
    registry.set_alias(store, "sts", BAD, "champion")
    assert promotion.decide("sts@1") == (GOOD, "promoted")
    kept = verdict(store, GOOD)
    assert (in_charge(store), kept["verdict"], missed(kept)) == (GOOD, "promote", [])
    test = kept["evidence"]["test"]
    assert test["challenger"][0] == pytest.approx(1.0) and test["rows"] == 24
    assert 0 < test["gain"][1] <= test["gain"][0] == pytest.approx(test["challenger"][0] - test["champion"][0])
    page = document(store, GOOD, "html").read_text(encoding="utf-8")
    assert "sts@1 against sts@2: promote" in page and "Examples won most" in page
    assert all(rule["name"] in page for rule in kept["rules"])


def test_a_planted_loss_is_rejected(store):
    registry.set_alias(store, "sts", GOOD, "champion")
    promotion.decide("sts@2")
    kept = verdict(store, BAD)
    assert (in_charge(store), kept["verdict"]) == (GOOD, "reject")
    assert kept["evidence"]["test"]["gain"][2] < 0


def test_the_same_model_under_another_name_is_held(store):
    registry.set_alias(store, "sts", GOOD, "champion")
    assert promotion.decide("sts")[0] == TWIN
    kept = verdict(store, TWIN)
    assert (in_charge(store), kept["verdict"], missed(kept)) == (GOOD, "hold", ["another model"])


def test_the_first_model_is_compared_with_its_base_model(store):
    promotion.decide("sts@1")
    kept = verdict(store, GOOD)
    assert (in_charge(store), kept["champion"], kept["verdict"]) == (GOOD, "the base model", "promote")
    assert "sts@1 against the base model: PROMOTE" in promotion.text("sts", GOOD)


def test_a_first_model_below_the_floor_is_held(store, shelf):
    shelf.edit("recipes.sts.gate.floor", 1.1)
    promotion.decide("sts@1")
    assert (in_charge(store), missed(verdict(store, GOOD))) == (None, ["floor"])


def test_a_verdict_that_is_known_is_shown_and_not_reached_again(store):
    registry.set_alias(store, "sts", GOOD, "champion")
    promotion.decide("sts@2")
    first = {path: path.stat().st_mtime_ns for path in verdict_files(store, BAD).iterdir()}
    promotion.decide("sts@2")
    assert {path: path.stat().st_mtime_ns for path in verdict_files(store, BAD).iterdir()} == first
    assert len(first) == 2


@pytest.mark.parametrize("end", ["json", "html"])
def test_an_edited_verdict_is_told_by_the_history_and_reached_anew(store, evergreen, end):
    registry.set_alias(store, "sts", GOOD, "champion")
    promotion.decide("sts@2")
    edited, entry = document(store, BAD, end), journal.read(store, "sts").events[-1]
    assert entry.evidence.endswith(provenance.sha256(document(store, BAD)))
    edited.write_text(edited.read_text(encoding="utf-8").replace("reject", "promote"), encoding="utf-8")
    said = f"entry {entry.number} rests on verdicts/{document(store, BAD).name} of run "
    assert said in evergreen("history", "sts").err and said in evergreen("explain", "sts@2").out
    assert "was changed" in promotion.text("sts", BAD)
    promotion.decide("sts@2")
    assert (verdict(store, BAD)["verdict"], in_charge(store)) == ("reject", GOOD)
    assert document(store, BAD, end) != edited


def test_a_champion_that_was_put_in_charge_unjudged_is_judged_against_the_one_it_replaced(store, evergreen):
    history.move(store, "sts", GOOD, "", "promote")
    registry.set_alias(store, "sts", BAD, "champion")
    done = evergreen("promote", "sts@2")
    assert "warning: sts@2 was put in charge by hand in MLflow in place of sts@1" in done.err
    assert "warning: the rules were not asked about sts@2; ask them: evergreen promote sts@2" in done.err
    assert done.out.startswith("sts@2 against sts@1: REJECT\n")
    assert done.out.endswith("  sts@2 is the champion, though the rules said reject; undo it: evergreen rollback sts\n")
    entry = journal.read(store, "sts").events[-1]
    assert (entry.verdict, entry.version, entry.before, entry.after) == ("reject", BAD, BAD, BAD)
    assert evergreen("promote", "sts@2").out == done.out and journal.read(store, "sts").events[-1] == entry


def test_other_rules_are_another_verdict(store, shelf):
    registry.set_alias(store, "sts", GOOD, "champion")
    promotion.decide("sts@2")
    shelf.edit("recipes.sts.gate.margin", -1.5)
    promotion.decide("sts@2")
    assert (verdict(store, BAD)["verdict"], in_charge(store)) == ("promote", BAD)


BROKEN = {
    "test digest": lambda found: changed(TEST),
    "champion verified": lambda found: changed(next(model_files.stored("models:/sts/2").rglob("*.safetensors"))),
    "challenger verified": lambda found: changed(verdict_files(found, GOOD).parent / "evaluation/seen.npy"),
    "test set": lambda found: tagged(found, BAD, "test_content_sha256", "0" * 64),
    "tasks digest": lambda found: tagged(found, GOOD, "tasks_sha256", "0" * 64),
    "smaller test set": lambda found: tagged(found, BAD, "test_rows", "25"),
    "same metric, champion": lambda found: tagged(found, BAD, "test_spearman_cosine", None),
    "same metric, challenger": lambda found: tagged(found, GOOD, "test_spearman_cosine", "0.5"),
    "finite": lambda found: tagged(found, GOOD, "test_spearman_cosine", "nan"),
}


@pytest.mark.fault(24)
@pytest.mark.parametrize("rule", BROKEN)
def test_a_gain_that_cannot_be_trusted_is_held_by_name(store, rule):
    registry.set_alias(store, "sts", BAD, "champion")
    with BROKEN[rule](store):
        promotion.decide("sts@1")
    kept = verdict(store, GOOD)
    assert (in_charge(store), kept["verdict"], missed(kept)) == (BAD, "hold", [rule])


def test_a_test_set_that_may_change_is_scored_for_both(store, shelf):
    registry.set_alias(store, "sts", BAD, "champion")
    shelf.edit("recipes.sts.gate.test_set", "changed")
    with tagged(store, BAD, "test_content_sha256", "0" * 64):
        promotion.decide("sts@1")
    assert in_charge(store) == GOOD


def test_rows_that_a_model_was_trained_on_are_left_out(store):
    project = params.load()
    texts = batching.texts(TEST, sts.TASK.TEXTS)
    known = seen.keys([texts["sentence2"][:3], texts["sentence1"][:3]]).ravel()
    side = contest.Contestant(MODEL, None, np.empty(0, np.uint64))
    base = contest.Contestant(Path("models/base/tiny"), None, known)
    found, _ = contest.measure("sts", project.recipe("sts"), project, TEST.parent, [side], base, first=False)
    assert (found["excluded"], found["test"].rows) == (3, 21)


def test_other_seeds_of_the_same_training_widen_the_interval(store, shelf):
    """A copy that was trained from another seed alone counts; one whose settings differ too does not."""
    registry.set_alias(store, "sts", BAD, "champion")
    promotion.decide("sts@1")
    alone = verdict(store, GOOD)["evidence"]
    try:
        for seed, rate in ((43, 0.001), (44, 0.5)):
            copy = shelf / f".evergreen/seeds/{seed}"
            shutil.copytree(MODEL, copy / MODEL)
            spoil(copy / MODEL)
            lock = params.read(Path("dvc.lock"))
            numbers = lock["stages"]["train@sts"]["params"]["params.yaml"]
            numbers["seed"], numbers["recipes.sts.train"]["learning_rate"] = seed, rate
            (copy / "dvc.lock").write_text(json.dumps(lock), encoding="utf-8")
        registry.set_alias(store, "sts", BAD, "champion")
        promotion.decide("sts@1")
    finally:
        shutil.rmtree(shelf / ".evergreen/seeds")
    both = verdict(store, GOOD)["evidence"]
    assert (alone["seeds"], both["seeds"]) == (1, 2)
    widths = [found["test"]["gain"][2] - found["test"]["gain"][1] for found in (alone, both)]
    assert widths[1] > 1.05 * widths[0] and both["test"]["gain"][0] < alone["test"]["gain"][0]


def test_a_champion_that_was_lost_is_not_replaced_by_what_beats_the_base_model_alone(store):
    history.move(store, "sts", TWIN, "", "promote")
    store.delete_registered_model_alias("sts", "champion")
    assert promotion.decide("sts@1") == (GOOD, "noted")
    kept = verdict(store, GOOD)
    assert (in_charge(store), kept["verdict"], missed(kept)) == (None, "hold", ["champion"])
    assert "sts@3 was in charge" in kept["reason"] and "evergreen rollback sts --to N" in kept["reason"]


def test_what_a_rollback_took_back_does_not_return_by_itself_however_it_came_in_charge(store):
    history.move(store, "sts", BAD, "", "promote")
    registry.set_alias(store, "sts", GOOD, "champion")          # by hand
    assert history.rollback(store, "sts").after == BAD
    assert promotion.decide("sts@1", "auto") == (GOOD, "decided")
    assert (in_charge(store), verdict(store, GOOD)["verdict"]) == (BAD, "promote")
    assert promotion.decide("sts@1", "yes") == (GOOD, "promoted")


def test_a_rollback_need_not_wait_for_scores_and_a_champion_that_changed_by_then_is_compared_with(store, monkeypatch):
    registry.set_alias(store, "sts", BAD, "champion")
    judge, against = promotion.Case.judge, []

    def slowly(case):
        against.append(case.champion[0].number)
        with FileLock(Path(".evergreen/decide-sts.lock").absolute(), timeout=0):     # another's decision meanwhile
            if len(against) == 1:
                registry.set_alias(store, "sts", TWIN, "champion")
        return judge(case)
    monkeypatch.setattr(promotion.Case, "judge", slowly)
    assert promotion.decide("sts@1") == (GOOD, "noted")
    assert (against, in_charge(store), missed(verdict(store, GOOD))) == ([BAD, TWIN], TWIN, ["another model"])


@pytest.mark.fault(23)
def test_a_decision_of_another_machine_on_the_same_store_is_seen_before_the_alias_moves(
        store, shelf, tmp_path, monkeypatch):
    """It comes after this one's verdict on the champion before, under another lock: the new champion is met too."""
    registry.set_alias(store, "sts", BAD, "champion")
    shutil.copytree(shelf.folder, tmp_path / "clone", ignore=shutil.ignore_patterns(".evergreen"))
    elsewhere, settle = Project(tmp_path / "clone", shelf.environment), promotion.settle

    def late(*arguments):
        if in_charge(store) == BAD:
            elsewhere.evergreen("rollback", "sts", "--to", str(TWIN), MLFLOW_TRACKING_URI=tracking.uri())
        return settle(*arguments)
    monkeypatch.setattr(promotion, "settle", late)
    assert promotion.decide("sts@1") == (GOOD, "noted")
    assert (in_charge(store), missed(verdict(store, GOOD))) == (TWIN, ["another model"])
    log = journal.read(store, "sts")
    assert ([(e.before, e.after) for e in log.done()], log.problems) == ([(None, BAD), (BAD, TWIN), (TWIN, TWIN)], [])


def test_the_command_decides_prints_and_names_what_is_not_there(store, evergreen):
    done = evergreen("promote", "sts@1", "--yes")
    assert done.code == 0 and done.out.startswith("sts@1 against the base model: PROMOTE\n")
    assert done.out.splitlines()[1].startswith("  spearman_cosine 1.0000 (1.0000 to 1.0000) on 24 test rows; the base ")
    assert f"  as a page: verdicts/{document(store, GOOD, 'html').name} of run " in done.out
    assert done.out.endswith("  sts@1 is the champion\n")
    assert evergreen("promote", "sts@9").err == (
        "error: sts has no version 9 to decide on; make one: evergreen run sts\n")
