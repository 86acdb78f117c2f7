"""A promotion that waits for a person: the answers, the terminal, the server's page, and no answer in time."""

import io
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows import promotion, waiting
from steps import journal, registry, verdicts
from steps.schema import InputError
from tests.planted import BAD, GOOD, in_charge, lent, make_shelf
from tests.project import Project


@pytest.fixture(scope="module")
def shelf(finished, tmp_path_factory) -> Project:
    return make_shelf(finished, tmp_path_factory.mktemp("shelf") / "project")


@pytest.fixture
def store(shelf, inside):
    inside(shelf)
    with lent(shelf) as found:
        yield found


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


@pytest.mark.parametrize("answer, state, champion", [("yes", "promoted", GOOD), ("no", "refused", None)])
def test_an_answer_needs_no_data_where_it_is_given(store, tmp_path, answer, state, champion):
    """And who only looks from there destroys no verdict that waits."""
    waiting = promotion.decide("sts@1", "ask")[1]
    with without(Path("data"), tmp_path):
        for look in (None, "ask"):
            with pytest.raises(InputError, match=r"sts@1 waits for a person, .* is not here; .*sts@1 --yes, or --no"):
                promotion.decide("sts@1", look)
        assert store.get_model_version("sts", "1").tags["verdict_state"] == waiting
        assert (promotion.decide("sts@1", answer)[1], in_charge(store)) == (state, champion)


def test_an_answer_to_a_verdict_by_other_rules_counts_where_they_are_met_too(store, shelf):
    promotion.decide("sts@1", "ask")
    shelf.edit("recipes.sts.gate.margin", 1.9)
    assert (promotion.decide("sts@1", "yes")[1], in_charge(store)) == ("noted", None)


def test_an_answer_to_a_verdict_that_no_more_stands_ends_it_where_the_data_are_gone(store, shelf, tmp_path):
    promotion.decide("sts@1", "ask")
    shelf.edit("recipes.sts.gate.margin", 0.1)
    with without(Path("data"), tmp_path):
        assert (promotion.decide("sts@1", "no")[1], in_charge(store)) == ("noted", None)


@contextmanager
def without(folder: Path, elsewhere: Path):
    shutil.move(folder, elsewhere)
    try:
        yield
    finally:
        shutil.move(elsewhere / folder.name, folder)


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


def test_what_waited_too_long_lapses_whether_or_not_a_newer_version_came(store, shelf):
    promotion.decide("sts@1", "ask")
    assert (waiting.lapse("sts"), waiting.newest("sts")) == ([], GOOD)
    shelf.edit("recipes.sts.gate.approval", {"policy": "ask", "hours": 1e-6})
    assert (waiting.lapse("sts"), waiting.newest("sts"), waiting.lapse("sts")) == ([GOOD], None, [])
    assert waiting.state("sts", GOOD) == "lapsed" and in_charge(store) is None
    assert journal.read(store, "sts").events[-1].why.startswith("nobody confirmed within 1e-06 hours; the rules said ")
    assert "nobody confirmed in time" in promotion.text("sts", GOOD)


def test_no_answer_in_time_undoes_no_answer_that_came_and_no_champion(store, shelf):
    promotion.decide("sts@1", "ask")
    promotion.decide("sts@1", "no")
    assert promotion.decide("sts@1", "lapsed") == (GOOD, "refused")
    verdicts.mark(store, "sts", GOOD, f"{verdicts.WAITING}2020-01-01T00:00:00+00:00")
    registry.set_alias(store, "sts", GOOD, "champion")
    before = len(journal.read(store, "sts").events)
    assert (waiting.lapse("sts"), waiting.state("sts", GOOD)) == ([], "promoted")
    assert len(journal.read(store, "sts").events) == before


def test_a_version_that_was_deleted_waits_no_more(store):
    assert (waiting.since("sts", 99), waiting.state("sts", 99)) == (None, "")


def test_a_person_cannot_confirm_what_the_rules_hold(store):
    registry.set_alias(store, "sts", GOOD, "champion")
    promotion.decide("sts@2", "yes")
    assert in_charge(store) == GOOD


def test_a_flow_on_a_server_pauses_until_the_time_is_over_or_a_person_answers(store, shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.testing.utilities import prefect_test_harness

    from flows import approval

    promotion.decide("sts@1", "ask")
    ran = flow(name="confirming")(lambda: approval.ask("sts", GOOD))

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
        verdicts.mark(store, "sts", GOOD, f"{verdicts.WAITING}{datetime.now(UTC).isoformat()}")
        person = threading.Thread(target=answer, daemon=True)
        person.start()
        ran()
        person.join(10)
    assert in_charge(store) == GOOD
