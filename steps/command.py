"""The process of one step: quiet libraries, one exit status per kind of ending, no life after its parent."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence

from steps.schema import InputError

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",     # a pickle runs code when it is loaded
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    "GOMP_SPINCOUNT": "10000",      # threads that spin long at barriers cost up to 8x where cores are shared
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def quiet(offline: bool = True) -> None:
    """Turns telemetry off and, for steps that need no network, the hub too, before a library is imported."""
    inside = {"MPLCONFIGDIR": os.path.abspath(".evergreen/matplotlib")}     # else it writes to the home folder
    for key, value in (QUIET | inside | (OFFLINE if offline else {})).items():
        os.environ.setdefault(key, value)


def unblock() -> None:
    """Lets a polite request to end through: a process inherits what its starter blocked, and some block that."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def die_with_parent() -> None:
    """Asks Linux to end this process when the one that started it dies, so that no step outlives its driver."""
    unblock()
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def main(body: Callable[[Sequence[str]], None], offline: bool = True) -> None:
    """Runs a step's body on its arguments. Exit status: 0 done, 2 bad input, 130 interrupted."""
    quiet(offline)
    die_with_parent()
    sys.exit(status(body, sys.argv[1:]))


def status(body: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    try:
        return body(arguments) or 0
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 141
    except KeyboardInterrupt:
        print("interrupted; the next run continues with the first stage that is not done", file=sys.stderr)
        return 130
