"""What Prefect is told by the environment before it is imported: a home in the project, short logs, a heartbeat."""

import os
from pathlib import Path

from steps import command

HEARTBEAT = 30      # seconds, the least that Prefect takes; `evergreen deploy` tells the server to expect it
PREFECT = {
    "PREFECT_HOME": os.path.abspath(".evergreen/prefect"),
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s | %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s | %(task_run_name)s | %(message)s",
}


def prefect() -> None:
    """Sets what the environment does not say by itself."""
    command.quiet(offline=False)
    os.environ.update({k: v for k, v in PREFECT.items() if k not in os.environ})
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
