"""One webhook of the user's choice -> told once of each retraining that failed, crashed or came to a verdict.

It is told again of a verdict that waited for a person, when there is an answer or the time is over; and where a
retraining finds that a source has a newer revision than the pinned one, once of each.

EVERGREEN_WEBHOOK=https://... python -m flows.notifications

https://docs.prefect.io/v3/concepts/automations
"""

import os
import sys
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.context import get_run_context
from prefect.events import emit_event
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.types import SecretDict

from flows.server import RETRAIN
from steps import command
from steps.schema import InputError

VERDICT, NEWS = "evergreen.verdict", "evergreen.news"
TOLD = Path(".evergreen/news.txt")      # the news that were told
TEXTS = {               # of runs of RETRAIN alone: a stage's run tells that one how it ended
    "prefect.flow-run.Failed": '"retraining failed: " ~ flow_run.state.message',
    "prefect.flow-run.Crashed": '"retraining crashed: " ~ flow_run.state.message',
    VERDICT: "event.payload.text",
    NEWS: "event.payload.text",
}


def apply(url: str) -> None:
    """Keeps the address as a secret block of the Prefect server, and an automation for each event; again changes them.

    The message is JSON, {"text": "..."}, which chat programs show as it is.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise InputError("EVERGREEN_WEBHOOK must be an address, http://... or https://...")     # which is a secret
    block = Webhook(method="POST", url=url, headers=SecretDict({"Content-Type": "application/json"}))
    block_id = block.save("evergreen", overwrite=True)
    for event, text in TEXTS.items():
        wanted = Automation(
            name=f"evergreen: tell of {event}", description="python -m flows.notifications",
            trigger=EventTrigger(
                expect={event}, match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related={"prefect.resource.role": "flow", "prefect.resource.name": RETRAIN},
                posture=Posture.Reactive, threshold=1, within=timedelta(0)),
            actions=[CallWebhook(block_document_id=block_id, payload=payload(text))])
        try:
            wanted.id = Automation.read(name=wanted.name).id
        except ValueError:
            wanted.create()
        else:
            wanted.update()


def payload(text: str) -> str:
    """The template of a message: `text` is an expression of Jinja."""
    return '{"text": {{ (' + text + ' ~ "\\n" ~ (flow_run|ui_url)) | tojson }}}'


def announce(event: str, texts: list[str]) -> None:
    """Tells, from inside a flow, what was decided (VERDICT) or found (NEWS)."""
    run = get_run_context().flow_run
    emit_event(event, {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
               payload={"text": "\n\n".join(texts)})


def announce_new(news: list[str]) -> None:
    """Tells of each newer revision once, not at every run until somebody pins it."""
    known = TOLD.read_text(encoding="utf-8").splitlines() if TOLD.exists() else []
    if new := [line for line in news if line not in known]:
        announce(NEWS, new)
        TOLD.parent.mkdir(exist_ok=True)
        with open(TOLD, "a", encoding="utf-8") as told:
            told.writelines(f"{line}\n" for line in new)


def main(arguments: list[str]) -> None:
    if "EVERGREEN_WEBHOOK" not in os.environ:
        raise InputError("EVERGREEN_WEBHOOK is not set; it says whom to tell")
    apply(os.environ["EVERGREEN_WEBHOOK"])


if __name__ == "__main__":
    sys.exit(command.status(main, sys.argv[1:]))
