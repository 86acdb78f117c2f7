"""The log of decisions: who, when, from, to, why; nothing rewritten unseen; hand-made promotions noticed."""

from datetime import UTC, datetime, timedelta

import pytest

from steps import history, journal, registry
from steps.schema import InputError
from tests import shelf


def champion(found) -> int | None:
    return registry.model(found, "sts")[0].get("champion")


def moves(found) -> list[tuple]:
    return [(e.before, e.after, e.verdict, e.state) for e in journal.read(found, "sts").events]


def test_a_promotion_says_who_when_from_to_why(found):
    shelf.add(found, 2)
    before = datetime.now(UTC)
    history.move(found, "sts", 1, "the first", "promote", who="ann")
    history.move(found, "sts", 2, "gain 0.03", "promote", who="bob")
    assert champion(found) == 2
    log = journal.read(found, "sts")
    assert [(e.number, e.who, e.before, e.after, e.why, e.verdict) for e in log.events] == [
        (1, "ann", None, 1, "the first", "promote"), (2, "bob", 1, 2, "gain 0.03", "promote")]
    assert before <= log.events[0].at <= log.events[1].at <= datetime.now(UTC)
    assert log.problems == []


def test_a_hold_is_kept_and_moves_nothing(found):
    shelf.add(found, 2)
    history.move(found, "sts", 1, "", "promote")
    event = history.note(found, "sts", 2, "hold", "the interval holds 0")
    assert (event.version, event.before, event.after, event.state) == (2, 1, 1, "done")
    assert champion(found) == 1


def test_rollback_puts_the_previous_champion_back_and_then_the_one_before_it(found, evergreen):
    shelf.add(found, 3)
    for number in (1, 2, 3):
        history.move(found, "sts", number, "", "promote")
    done = evergreen("rollback", "sts", "--why", "complaints")
    assert (done.code, done.out) == (0, "sts@2 is in charge, in place of sts@3; its files were verified (entry 4)\n")
    assert evergreen("rollback", "sts").out.startswith("sts@1 is in charge, in place of sts@2")
    done = evergreen("rollback", "sts")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: sts had no champion before this one that is still there")
    assert champion(found) == 1
    assert journal.read(found, "sts").events[3].why == "complaints"


@pytest.mark.fault(29)
def test_a_clock_that_jumps_changes_no_order(found, monkeypatch):
    """An hour back between the first and the second decision, and two ahead before the third."""
    class Clock(datetime):
        ahead = timedelta()

        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + cls.ahead

    monkeypatch.setattr(journal, "datetime", Clock)
    shelf.add(found, 3)
    for number, hours in ((1, 0), (2, -1), (3, 1)):
        Clock.ahead = timedelta(hours=hours)
        history.move(found, "sts", number, "", "promote")
    log = journal.read(found, "sts")
    assert log.events[1].at < log.events[0].at < log.events[2].at
    assert ([e.after for e in log.events], log.problems, log.champion()) == ([1, 2, 3], [], 3)
    Clock.ahead = timedelta(hours=-1)
    assert history.rollback(found, "sts").after == 2


def test_rollback_to_a_version_of_ones_choice(found, evergreen):
    shelf.add(found, 3)
    history.move(found, "sts", 1, "", "promote")
    assert evergreen("rollback", "sts", "--to", 3).code == 0
    assert champion(found) == 3
    assert evergreen("rollback", "sts").out.startswith("sts@1 is in charge, in place of sts@3")


@pytest.mark.parametrize(("to", "message"), [
    (9, "'sts' has no version 9; versions: [1]"), (1, "sts@1 is in charge already")])
def test_a_rollback_to_what_cannot_be_is_refused_and_leaves_no_entry(found, evergreen, to, message):
    shelf.add(found)
    history.move(found, "sts", 1, "", "promote")
    done = evergreen("rollback", "sts", "--to", to)
    assert (done.code, done.err) == (2, f"error: {message}\n")
    assert len(moves(found)) == 1


@pytest.mark.fault(25)
def test_a_version_whose_files_were_changed_never_takes_the_alias(found, evergreen):
    shelf.add(found, 2)
    for number in (1, 2):
        history.move(found, "sts", number, "", "promote")
    shelf.weights(found, 1).write_bytes(b"other")
    done = evergreen("rollback", "sts")
    assert done.code == 2 and "sts@1: the files in" in done.err and "are not those that were registered" in done.err
    assert champion(found) == 2
    assert len(moves(found)) == 2


def test_history_answers_for_any_time(found, evergreen):
    shelf.add(found, 2)
    first = history.move(found, "sts", 1, "the first", "promote", who="ann")
    second = history.move(found, "sts", 2, "better", "promote", who="bob")
    between = (first.at + (second.at - first.at) / 2).isoformat()
    assert evergreen("history", "sts", "--at", between).out.splitlines()[0].startswith("sts: sts@1 was in charge at")
    early = (first.at - timedelta(days=1)).isoformat()
    assert evergreen("history", "sts", "--at", early).out.startswith("sts: nobody was in charge at")
    now = evergreen("history", "sts").out.splitlines()
    assert now[0] == "sts: sts@2 is in charge"
    assert [line.split("Z  ")[1].split() for line in now[1:]] == [
        ["promote", "nobody", "->", "sts@1", "ann:", "the", "first"],
        ["promote", "sts@1", "->", "sts@2", "bob:", "better"]]


@pytest.mark.parametrize(("at", "message"), [
    ("yesterday", "--at 'yesterday' is not a time; write it as 2026-11-01T00:00Z"),
    ("2026-11-01T00:00", "--at '2026-11-01T00:00' names no time zone")])
def test_a_time_that_is_none_is_refused(found, evergreen, at, message):
    done = evergreen("history", "sts", "--at", at)
    assert (done.code, done.out) == (2, "") and done.err.startswith(f"error: {message}")


def test_a_time_is_read_in_its_zone():
    assert history.parse_time("2026-11-01T00:00Z") == datetime(2026, 11, 1, tzinfo=UTC)
    assert history.parse_time("2026-11-01T02:00+02:00") == datetime(2026, 11, 1, tzinfo=UTC)


def test_the_history_of_what_is_not_registered_is_an_error(found, evergreen):
    done = evergreen("history", "sts")
    assert done.code == 2 and done.err.startswith("error: no model 'sts' is registered; registered: none yet")


def test_a_promotion_by_hand_is_written_down_by_the_next_command(found, evergreen):
    shelf.add(found, 2)
    history.move(found, "sts", 1, "", "promote")
    found.set_registered_model_alias("sts", "champion", "2")
    done = evergreen("rollback", "sts")
    assert done.err.startswith("warning: sts@2 was put in charge by hand in MLflow in place of sts@1; noticed now")
    assert moves(found) == [(None, 1, "promote", "done"), (1, 2, "by hand", "done"), (2, 1, "rollback", "done")]
    assert journal.read(found, "sts").events[1].who == "unknown"
    assert history.reconcile(found, "sts") is None


def test_a_first_champion_by_hand_is_noticed_too(found):
    shelf.add(found)
    found.set_registered_model_alias("sts", "champion", "1")
    assert history.notice("sts")
    assert moves(found) == [(None, 1, "by hand", "done")]
    assert history.notice("sts") == []


@pytest.mark.parametrize(("verdict", "warned"), [
    ("promote", None), ("hold", "the rules said hold for sts@1"), ("reject", "the rules said reject for sts@1"),
    (None, "the rules were not asked about sts@1")])
def test_a_promotion_by_hand_against_the_rules_is_warned_of(found, verdict, warned):
    shelf.add(found, 1, **({"verdict": verdict} if verdict else {}))
    found.set_registered_model_alias("sts", "champion", "1")
    said = [line for line in history.notice("sts") if line.startswith("the rules ")]
    assert [line.split(";")[0] for line in said] == ([warned] if warned else [])


def test_a_promotion_by_hand_of_changed_files_is_warned_of_and_undone(found, evergreen):
    shelf.add(found, 2)
    history.move(found, "sts", 1, "", "promote")
    shelf.weights(found, 2).write_bytes(b"other")
    found.set_registered_model_alias("sts", "champion", "2")
    done = evergreen("history", "sts")
    assert "warning: its files cannot be trusted: sts@2: the files in" in done.err
    with pytest.raises(InputError, match="are not those that were registered"):
        registry.resolve("sts")
    assert evergreen("rollback", "sts").code == 0
    assert registry.resolve("sts")[0].number == 1


@pytest.mark.fault(25)
def test_a_version_that_holds_an_alias_is_not_deleted(found, evergreen):
    shelf.add(found, 2)
    history.move(found, "sts", 1, "", "promote")
    done = evergreen("delete", "sts@1")
    assert (done.code, done.err) == (
        2, "error: sts@1 is the champion and is not deleted; put another in its place first\n")
    assert evergreen("delete", "sts@2").out == "sts@2 is deleted\n"
    assert registry.numbers(found, "sts") == [1]


@pytest.mark.fault(25)
def test_a_champion_deleted_in_mlflow_is_told_nothing_serves_in_its_place_and_rollback_works(found, evergreen):
    shelf.add(found, 3)
    found.set_registered_model_alias("sts", "challenger", "3")
    for number in (1, 2):
        history.move(found, "sts", number, "", "promote")
    found.delete_model_version("sts", "2")
    done = evergreen("predict", "sts", "a", "b")
    assert done.code == 2
    assert "warning: sts has no champion any more: sts@2 was deleted" in done.err
    assert "error: sts has no champion any more" in done.err
    assert evergreen("predict", "sts", "a", "b").code == 2      # noticed already, and still not the challenger
    assert "sts: nobody is in charge" in evergreen("history", "sts").out
    assert evergreen("rollback", "sts").out.startswith("sts@1 is in charge, in place of nobody")
    assert registry.resolve("sts")[0].number == 1


def tampered(found, number: int, /, **tags: str) -> list[str]:
    """What the log says after somebody set tags of an entry."""
    entry = journal.read(found, "sts").events[number - 1].entry
    for key, value in tags.items():
        found.set_tag(entry, key, value)
    return journal.read(found, "sts").problems


@pytest.fixture
def three(found):
    shelf.add(found, 3)
    for number in (1, 2, 3):
        history.move(found, "sts", number, "", "promote")
    return found


@pytest.mark.parametrize("change", [
    {"why": "another reason"}, {"sha256": "0" * 64}, {"number": "7"}, {"evidence": "another"}])
def test_a_rewritten_entry_shows(three, evergreen, change):
    problems = tampered(three, 2, **change)
    assert any("was rewritten" in p for p in problems) and any("missing" in p for p in problems)
    assert evergreen("history", "sts").code == 1


def test_an_entry_rewritten_with_a_new_hash_breaks_the_chain(three):
    from steps import provenance

    event = journal.read(three, "sts").events[1]
    forged = {**event.tags(), "why": "forged"}
    problems = tampered(three, 2, why="forged", sha256=provenance.digest(forged))
    assert problems == ["entry 3 was written after another entry 2 than is there now"]


def gone(found, number: int) -> None:
    """Deletes an entry for good, as MLflow's gc does."""
    from mlflow.tracking._tracking_service.utils import _get_store

    _get_store()._hard_delete_run(journal.read(found, "sts").events[number - 1].entry)


@pytest.mark.parametrize(("number", "message"), [
    (2, "1 entries before entry 3 are missing"), (1, "1 entries before entry 2 are missing"),
    (3, "entry 3, once the newest, is missing")])
def test_a_deleted_entry_shows(three, evergreen, number, message):
    gone(three, number)
    assert message in journal.read(three, "sts").problems
    assert evergreen("history", "sts").code == 1


def test_an_entry_deleted_on_the_page_is_still_read_and_told(three):
    three.delete_run(journal.read(three, "sts").events[1].entry)
    log = journal.read(three, "sts")
    assert len(log.events) == 3
    assert log.problems == ["entry 2 was deleted in MLflow; restore it before its gc removes it"]


def test_a_changed_status_shows(three):
    three.set_terminated(journal.read(three, "sts").events[1].entry, "KILLED")
    assert journal.read(three, "sts").problems == [
        "entry 3 found sts@2 in charge, and the entries before it say sts@1: their status in MLflow was changed"]


def test_an_entry_that_was_sent_twice_counts_once(found):
    """A client whose answer was lost on the way sends again."""
    from steps import tracking

    shelf.add(found)
    event = history.move(found, "sts", 1, "", "promote")
    tracking.append(found, "sts", "again", {**event.tags(), "sha256": event.sha256}, event.at.timestamp())
    log = journal.read(found, "sts")
    assert ([e.state for e in log.events], log.problems) == (["done"], [])
    assert history.reconcile(found, "sts") is None


def test_a_reason_that_the_store_would_cut_is_refused(found):
    shelf.add(found)
    with pytest.raises(InputError, match="the reason has 5000 characters; at most 4000 are kept"):
        history.move(found, "sts", 1, "x" * 5000, "promote")
    assert champion(found) is None
