"""What the check of a soak's history finds: a lost result, a wrong champion, progress lost, a repair, an orphan."""

import sqlite3

import pytest

from benchmarks import soak, soak_check
from steps import registry
from tests import shelf

EVENTS = [{"number": n, **event} for n, event in enumerate([
    {"what": "start", "seed": 1, "attempt": 0, "promoted": True}, {"what": "save", "seed": 1, "step": 3},
    {"what": "kill"}, {"what": "broken", "seed": 1, "code": -9},
    {"what": "start", "seed": 1, "attempt": 1, "promoted": True}, {"what": "resume", "seed": 1, "step": 3},
    {"what": "save", "seed": 1, "step": 5}, {"what": "register", "version": 1},
    {"what": "name", "alias": "challenger", "version": 1}, {"what": "name", "alias": "champion", "version": 1},
    {"what": "end", "seed": 1, "left": []},
    {"what": "start", "seed": 2, "attempt": 0, "promoted": False}, {"what": "save", "seed": 2, "step": 1},
    {"what": "register", "version": 2}, {"what": "rename", "alias": "challenger", "version": 2},
    {"what": "end", "seed": 2, "left": []}])]
STORE = {"versions": {"1": {"seed": 1, "weights": "aa", "status": "FINISHED"},
                      "2": {"seed": 2, "weights": "bb", "status": "FINISHED"}},
         "champion": 1, "says": 1, "problems": [], "open": []}
EXPECTED = {1: "aa", 2: "bb"}


def wrong(events: list, store: dict = STORE) -> dict[str, list[str]]:
    return {"lost": soak_check.lost(events, store["versions"], EXPECTED),
            "champions": soak_check.wrong_champions(events, store), "progress": soak_check.progress(events),
            "repairs": soak_check.repairs(events), "orphans": soak_check.orphans(events)}


def test_a_history_in_which_all_went_well_has_nothing_wrong():
    assert not any(wrong(EVENTS).values())


def changed(place: int, **change) -> list:
    return [*EVENTS[:place], EVENTS[place] | change, *EVENTS[place + 1:]]


@pytest.mark.parametrize("what, events, store", [
    ("lost", EVENTS, {**STORE, "versions": {"1": STORE["versions"]["1"]}}),
    ("lost", EVENTS, {**STORE, "versions": STORE["versions"] | {"2": STORE["versions"]["2"] | {"weights": "cc"}}}),
    ("lost", [*EVENTS, {"what": "unregister", "version": 2}], STORE),
    ("lost", EVENTS[:-1], STORE),
    ("champions", changed(14, alias="champion"), STORE),
    ("champions", EVENTS, {**STORE, "champion": 2}),
    ("champions", EVENTS, {**STORE, "open": [1]}),
    ("progress", changed(6, step=2), STORE),
    ("progress", changed(5, step=2), STORE),
    ("repairs", EVENTS[:2] + EVENTS[3:], STORE),
    ("repairs", [*EVENTS, {"what": "hang", "seed": 2}], STORE),
    ("orphans", changed(10, left=["python -m steps.train"]), STORE)])
def test_each_thing_that_went_wrong_is_found(what, events, store):
    assert [name for name, lines in wrong(events, store).items() if lines] == [what]


def test_what_a_kill_left_half_written_is_needed_by_nothing(tmp_path):
    project = tmp_path / "project"
    for path in ("models/sts/model.safetensors", "models/.partial-sts/model.safetensors", "data/prepared/.partial-sts"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_bytes(b"four")
    (project / "dvc.lock").write_text("stages: {}\n", encoding="utf-8")
    spare, kept = soak_check.disk(project, tmp_path, {})
    assert kept == {"project/models/sts/model.safetensors": 4}
    assert spare == {"project/models/.partial-sts/model.safetensors": 4, "project/data/prepared/.partial-sts": 4}


def test_every_change_of_the_registry_is_written_down_and_what_is_written_stays(found):
    with sqlite3.connect(".evergreen/mlflow.db") as database:
        database.executescript(soak.WATCH)
    shelf.add(found, 2)
    for number in (1, 2):
        registry.set_alias(found, "sts", number, "champion")
    found.delete_registered_model_alias("sts", "champion")
    found.delete_model_version("sts", "2")
    with sqlite3.connect(".evergreen/mlflow.db") as database:
        assert database.execute("SELECT what, alias, version FROM soak ORDER BY number").fetchall() == [
            ("register", None, 1), ("register", None, 2), ("name", "champion", 1), ("rename", "champion", 2),
            ("unname", "champion", 2), ("withdraw", None, 2)]
        for change in ("UPDATE soak SET version = 9", "DELETE FROM soak"):
            with pytest.raises(sqlite3.IntegrityError, match="only appended to"):
                database.execute(change)
