"""A recipe's attempts to make a version -> a number each; the newest alone may register and promote.

A worker that was cut off and given up may go on for hours while another attempt is long under way (fencing: Kleppmann
2016, https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html). The store holds the newest.
"""

from steps import tracking
from steps.schema import InputError

TAG = "evergreen.attempt"


def begin(found, recipe: str, who: str) -> str:
    """Takes the next number for `who`, a name that nobody else has; attempts before it are overtaken from now on."""
    experiment = tracking.experiment(found, recipe)
    attempt = f"{int(newest(found, recipe).partition(' ')[0]) + 1} ({who})"
    found.set_experiment_tag(experiment, TAG, attempt)
    return attempt


def check(found, recipe: str, attempt: str | None) -> None:
    """Raises InputError where the attempt was overtaken; None is a person's own command, which nobody overtakes."""
    if attempt is not None and (now := newest(found, recipe)) != attempt:
        raise InputError(f"{recipe}: attempt {attempt} was overtaken by attempt {now}, which began later; "
                         "it registers and promotes nothing")


def newest(found, recipe: str) -> str:
    """The newest attempt, '0 (nobody)' before the first."""
    return found.get_experiment(tracking.experiment(found, recipe)).tags.get(TAG, "0 (nobody)")
