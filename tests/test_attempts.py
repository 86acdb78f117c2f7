"""An attempt that was overtaken registers and promotes nothing; a person's own command always may."""

import pytest

from flows import promotion
from steps import attempts, register
from steps.schema import InputError


@pytest.mark.fault(16)
def test_an_overtaken_attempt_neither_registers_nor_promotes(finished, inside):
    inside(finished)
    from steps import tracking

    found = tracking.client()
    stale = attempts.begin(found, "sts", "one")
    newer = attempts.begin(found, "sts", "two")
    first, second = (int(attempt.split()[0]) for attempt in (stale, newer))
    assert second == first + 1
    for act in (lambda: register.register("sts", stale), lambda: promotion.decide("sts@1", None, stale)):
        with pytest.raises(InputError, match=rf"attempt {first} \(one\) was overtaken by attempt {second} \(two\)"):
            act()
    assert register.register("sts", newer).number == register.register("sts").number == 1
