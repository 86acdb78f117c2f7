"""Real versions in a real store: a planted gain takes the champion's place, a planted loss does not, nor does doubt."""

import contextlib
import io
import json
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from flows import promotion
from steps import (
    batching,
    command,
    contest,
    evaluate,
    history,
    journal,
    params,
    provenance,
    register,
    registry,
    seen,
    tracking,
)
from steps.recipes import sts
from tests.conftest import Project
from tests.planted import MODEL, TEST, changed, plant, spoil, tagged

EVALUATION = Path("evaluation/sts/test")
GOOD, BAD, TWIN = 1, 2, 3       # the versions of the shelf


@pytest.fixture(scope="module")
def shelf(finished, tmp_path_factory) -> Project:
    """A project with three versions: the trained model, a spoilt one, and the trained one under another name."""
    folder = tmp_path_factory.mktemp("shelf") / "project"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns(".evergreen"))
    place = Project(folder, finished.environment)
    place.change(lambda values: values["recipes"]["sts"]["gate"].update(
        {"margin": -0.001, "floor": 0.0, "min_rows": 10, "slices": {}, "resamples": 500,
         "latency": {"texts": 2, "rounds": 2, "ratio": 50.0, "milliseconds": None}}))
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (command.QUIET | command.OFFLINE | {"MLFLOW_TRACKING_URI": ""}).items():
            patch.setenv(key, value)
        patch.chdir(folder)
        project = params.load()
        plant(project)

        def version() -> int:
            evaluate.evaluate("sts", project.recipe("sts"), project, TEST.parent, MODEL, EVALUATION)
            return register.register("sts").number

        assert version() == GOOD
        shutil.copytree(MODEL, "kept")
        spoil(MODEL)
        assert version() == BAD
        shutil.rmtree(MODEL)
        shutil.move("kept", MODEL)
        evaluate.evaluate("sts", project.recipe("sts"), project, TEST.parent, MODEL, EVALUATION)
        with open(EVALUATION / "metrics.json", "a", encoding="utf-8") as file:
            file.write(" ")
        assert register.register("sts").number == TWIN
    return place


@pytest.fixture
def store(shelf, inside):
    """A client of the shelf's store, in which nothing is in charge and no verdict is known; the rules as they were."""
    inside(shelf)
    before = (shelf / "params.yaml").read_bytes()
    yield (found := tracking.client())
    (shelf / "params.yaml").write_bytes(before)
    with contextlib.suppress(Exception):
        found.delete_registered_model_alias("sts", "champion")
    for number in (GOOD, BAD, TWIN):
        tags = found.get_model_version("sts", str(number)).tags
        for tag in tags:
            if tag.startswith("verdict") or tag == "promoted":
                found.delete_model_version_tag("sts", str(number), tag)
        shutil.rmtree(verdict_files(found, number), ignore_errors=True)


def verdict_files(found, number: int) -> Path:
    run = found.get_run(found.get_model_version("sts", str(number)).run_id)
    return Path(run.info.artifact_uri.removeprefix("file://")) / "verdicts"


def in_charge(found) -> int | None:
    champion = registry.champion(found, "sts")
    return champion and champion[0].number


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


def test_what_was_taken_out_of_charge_comes_back_by_a_person_alone(store):
    registry.set_alias(store, "sts", BAD, "champion")
    promotion.decide("sts@1")
    registry.set_alias(store, "sts", BAD, "champion")
    promotion.decide("sts@1", "auto")
    assert in_charge(store) == BAD
    assert "it was the champion before: sts@2 stays in charge" in promotion.text("sts", GOOD)
    promotion.decide("sts@1", "yes")
    assert in_charge(store) == GOOD


@pytest.mark.parametrize("answer, state, champion", [("yes", "promoted", GOOD), ("no", "refused", None)])
def test_a_promotion_that_a_person_confirms_waits_for_the_answer(store, answer, state, champion):
    assert promotion.decide("sts@1", "ask")[1].startswith("waiting since 20")
    assert in_charge(store) is None
    assert "it waits for a person" in promotion.text("sts", GOOD)
    assert (promotion.decide("sts@1", answer)[1], in_charge(store)) == (state, champion)
    assert (promotion.decide("sts@1", "ask")[1], in_charge(store)) == (state, champion)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("typed, said", [
    ("y\n", "sts@1 is the champion"), ("\n", "a person refused: sts has no champion yet"),
    ("", "it waits for a person: sts has no champion yet")])
def test_who_sits_at_the_terminal_is_asked_and_no_answer_is_none(store, evergreen, monkeypatch, typed, said):
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    done = evergreen("promote", "sts@1", "--approve", "ask")
    assert "promote sts@1? [y/N] " in done.out and done.out.splitlines()[-1].startswith(f"  {said}")


def test_a_promotion_that_nobody_confirms_lapses(store, shelf):
    promotion.decide("sts@1", "ask")
    shelf.edit("recipes.sts.gate.approval", {"policy": "ask", "hours": 1e-6})
    assert promotion.decide("sts@1") == (GOOD, "lapsed")
    assert in_charge(store) is None and "nobody confirmed in time" in promotion.text("sts", GOOD)


def test_a_person_cannot_confirm_what_the_rules_hold(store):
    registry.set_alias(store, "sts", GOOD, "champion")
    promotion.decide("sts@2", "yes")
    assert in_charge(store) == GOOD


BROKEN = {
    "test digest": lambda found: changed(TEST),
    "champion verified": lambda found: changed(next(registry.stored_folder("models:/sts/2").rglob("*.safetensors"))),
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
    assert widths[1] > 1.2 * widths[0] and both["test"]["gain"][0] < alone["test"]["gain"][0]


def test_the_command_decides_prints_and_names_what_is_not_there(store, evergreen):
    done = evergreen("promote", "sts@1", "--yes")
    assert done.code == 0 and done.out.startswith("sts@1 against the base model: PROMOTE\n")
    assert done.out.splitlines()[1].startswith("  spearman_cosine 1.0000 (1.0000 to 1.0000) on 24 test rows; the base ")
    assert f"  as a page: verdicts/{document(store, GOOD, 'html').name} of run " in done.out
    assert done.out.endswith("  sts@1 is the champion\n")
    assert evergreen("promote", "sts@9").err == (
        "error: sts has no version 9 to decide on; make one: evergreen run sts\n")


def test_a_flow_on_a_server_pauses_until_the_time_is_over_or_a_person_answers(store, shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.testing.utilities import prefect_test_harness

    from flows import pipeline

    promotion.decide("sts@1", "ask")
    ran = flow(name="confirming")(lambda: pipeline.confirm("sts", GOOD))

    def answer() -> None:
        with get_client(sync_client=True) as client:
            wanted = FlowRunFilter(state={"type": {"any_": ["PAUSED"]}})
            while not (paused := client.read_flow_runs(flow_run_filter=wanted)):
                time.sleep(0.2)
            client.resume_flow_run(paused[0].id, run_input={"promote": True})

    with prefect_test_harness(server_startup_timeout=120):
        shelf.edit("recipes.sts.gate.approval.hours", 1 / 3600)
        ran()
        assert store.get_model_version("sts", str(GOOD)).tags["verdict_state"] == "lapsed"
        assert (in_charge(store), journal.read(store, "sts").events[-1].verdict) == (None, "hold")
        shelf.edit("recipes.sts.gate.approval.hours", 1.0)
        person = threading.Thread(target=answer, daemon=True)
        person.start()
        ran()
        person.join(10)
    assert in_charge(store) == GOOD
