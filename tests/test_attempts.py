"""An attempt that was overtaken registers and promotes nothing; a person's own command always may."""

import pytest

from flows import promotion
from steps import attempts, model_files, register, registry, tracking
from steps.schema import InputError


@pytest.mark.fault(16)
def test_an_overtaken_attempt_neither_registers_nor_promotes(finished, inside):
    inside(finished)
    found = tracking.client()
    stale = attempts.begin(found, "sts", "one")
    newer = attempts.begin(found, "sts", "two")
    first, second = (int(attempt.split()[0]) for attempt in (stale, newer))
    assert second == first + 1
    for act in (lambda: register.register("sts", stale), lambda: promotion.decide("sts@1", None, stale)):
        with pytest.raises(InputError, match=rf"attempt {first} \(one\) was overtaken by attempt {second} \(two\)"):
            act()
    assert register.register("sts", newer).number == register.register("sts").number == 1


@pytest.mark.fault(16)
def test_an_attempt_that_is_overtaken_while_its_model_is_stored_makes_no_version(copy, inside, monkeypatch):
    inside(copy)
    found = tracking.client()
    attempt, store = attempts.begin(found, "sts", "one"), model_files._log_encoder

    def overtaken(*parts):
        attempts.begin(found, "sts", "two")
        return store(*parts)

    monkeypatch.setattr(model_files, "_log_encoder", overtaken)
    with pytest.raises(InputError, match=r"was overtaken by attempt \d+ \(two\)"):
        register.register("sts", attempt)
    assert registry.numbers_if_any(found, "sts") == []
    monkeypatch.undo()
    inside(copy)
    assert register.register("sts").number == 1
