"""Decisions on one store by machines that share no lock: each waits for, or gives way to, the other's open entry."""

import threading
import time
from dataclasses import replace

import pytest

from steps import history, journal, provenance, registry, tracking
from tests import shelf

pytestmark = pytest.mark.fault(23)


@pytest.fixture
def three(found):
    shelf.add(found, 3)
    history.move(found, "sts", 1, "", "promote")
    return found


def elsewhere(found, event: journal.Event) -> journal.Event:
    """The open entry, as another machine's."""
    found.set_tag(event.entry, tracking.PROCESS, "elsewhere-1")
    return event


def carried_out(found, event: journal.Event) -> None:
    """What the other machine does then."""
    registry.set_alias(found, "sts", event.after, "champion")
    journal.close(found, event)


def log(found) -> list[tuple]:
    found = journal.read(found, "sts")
    assert found.problems == []
    return [(e.number, e.before, e.after, e.state) for e in found.events]


def test_a_decision_under_way_elsewhere_is_waited_for(three):
    event = elsewhere(three, journal.append(three, "sts", 2, 1, 2, "promote", "", "ann"))
    with pytest.raises(TimeoutError):
        history.reconcile(three, "sts", wait=False)
    timer = threading.Timer(1, carried_out, (three, event))
    timer.start()
    assert history.note(three, "sts", 3, "hold", "").before == 2
    timer.join()
    assert log(three) == [(1, None, 1, "done"), (2, 1, 2, "done"), (3, 2, 2, "done")]


def test_a_decision_that_never_ends_elsewhere_is_taken_for_dead(three, monkeypatch):
    monkeypatch.setattr(history, "LEASE", 1.0)
    elsewhere(three, journal.append(three, "sts", 2, 1, 2, "promote", "", "ann"))
    began = time.monotonic()
    history.move(three, "sts", 3, "", "promote")
    assert time.monotonic() - began > 1
    assert log(three) == [(1, None, 1, "done"), (2, 1, 2, "void"), (3, 1, 3, "done")]


@pytest.mark.parametrize("over", [history.ANYBODY, 1])
def test_of_two_entries_at_once_the_one_that_sees_the_other_gives_way(three, monkeypatch, over):
    append, timers = journal.append, []

    def with_rival(*arguments):
        event = append(*arguments)
        if not timers:
            rival = replace(event, version=3, after=3, who="ann")
            rival = replace(rival, sha256=provenance.digest(rival.tags()))
            rival = elsewhere(three, replace(rival, entry=tracking.append(
                three, "sts", "rival", {**rival.tags(), "sha256": rival.sha256}, rival.at.timestamp())))
            timers.append(threading.Timer(1, carried_out, (three, rival)))
            timers[0].start()
        return event
    monkeypatch.setattr(journal, "append", with_rival)
    try:
        history.move(three, "sts", 2, "", "promote", over=over)
        moved = [(3, 3, 2, "done")]
    except history.Overtaken as error:
        assert str(error) == "sts@3 is in charge, not sts@1"
        moved = []
    timers[0].join()
    assert log(three) == [(1, None, 1, "done"), (2, 1, 3, "done"), *moved]
    assert bool(moved) == (over == history.ANYBODY)


def test_a_rival_that_was_a_little_earlier_and_has_not_moved_the_alias_yet_is_given_way_to(three, monkeypatch):
    """It writes its entry after this decision has looked for one, and before this one's."""
    append, timers = journal.append, []

    def behind_a_rival(*arguments):
        if not timers:
            rival = elsewhere(three, append(three, "sts", 3, 1, 3, "promote", "", "ann"))
            timers.append(threading.Timer(1, carried_out, (three, rival)))
            timers[0].start()
        return append(*arguments)
    monkeypatch.setattr(journal, "append", behind_a_rival)
    with pytest.raises(history.Overtaken, match="sts@3 is in charge, not sts@1"):
        history.move(three, "sts", 2, "", "promote", over=1)
    timers[0].join()
    assert log(three) == [(1, None, 1, "done"), (2, 1, 3, "done"), (3, 1, 2, "void")]


def test_a_promotion_elsewhere_is_not_taken_for_one_by_hand(three, monkeypatch):
    """The other machine writes its entry and moves the alias after this one has read the log."""
    in_charge, rivals = history.in_charge, []

    def late(found, recipe):
        if not rivals:
            rivals.append(elsewhere(found, journal.append(found, recipe, 2, 1, 2, "promote", "", "ann")))
            carried_out(found, rivals[0])
        return in_charge(found, recipe)
    monkeypatch.setattr(history, "in_charge", late)
    assert history.reconcile(three, "sts") is None
    assert [entry for entry in log(three) if entry[3] == "done"] == [(1, None, 1, "done"), (2, 1, 2, "done")]


def test_a_decision_that_the_store_refuses_is_no_open_one(three, monkeypatch):
    def fails(*_):
        raise OSError("no answer")
    with monkeypatch.context() as patch:
        patch.setattr(registry, "set_alias", fails)
        with pytest.raises(OSError, match="no answer"):
            history.move(three, "sts", 2, "", "promote")
    assert log(three) == [(1, None, 1, "done"), (2, 1, 2, "void")]
