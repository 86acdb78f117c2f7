"""A decision of the gate -> its JSON document and its page, kept with the version, and its table for a terminal."""

import hashlib
import html
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from steps import provenance, tracking
from steps.gate import Decision, Evidence, Rules
from steps.journal import NONE, Log

WAITING = "waiting since "
DECIDED, NOTED, PROMOTED, REFUSED, LAPSED = "decided", "noted", "promoted", "refused", "lapsed"
FOLDER = "verdicts"         # of the version's run
CHANGE = ("change: how much nearer the answer came to gold. For a correlation in ranks, as a share of the rows; for a "
          "class 1 is from wrong to right and -1 from right to wrong.")
STYLE = ("body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
         "td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left;vertical-align:top}.no{background:#fdd}")


def document(identity: str, recipe: str, names: Mapping[str, str], decision: Decision, evidence: Evidence,
             rules: Rules, examples: Mapping[str, list[dict]]) -> dict:
    """What was decided, on what: a JSON-able value. `names` says which models the two sides are."""
    return plain({
        "id": identity, "recipe": recipe, **names, "verdict": decision.verdict, "reason": decision.reason,
        "decided": datetime.now(UTC).isoformat(timespec="seconds"),
        "rules": [rule._asdict() for rule in decision.rules],
        "evidence": asdict(evidence), "settings": rules.model_dump(), "examples": dict(examples)})


def plain(value):
    """Tuples as lists, and numbers that JSON does not have as text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def keep(found, recipe: str, number: int, run_id: str, kept: dict) -> str:
    """Writes the document and its page to the version's run, and the verdict to the version's tags.

    The document holds the page's sha256, and whoever names the document names its own: the version's tag and the
    history. The tag `verdict_id` is last: a version that has it has all of its verdict. Returns the evidence.
    """
    shown = page(kept)
    content = json.dumps({**kept, "page_sha256": sha256(shown)}, indent=2, ensure_ascii=False) + "\n"
    evidence = f"{run_id} {sha256(content)}"
    for text, end in ((shown, "html"), (content, "json")):
        found.log_text(run_id, text, place(evidence, end))
    for tag, value in {"verdict": kept["verdict"], "verdict_reason": kept["reason"][:4000], "verdict_state": "decided",
                       "verdict_sha256": sha256(content), "verdict_id": kept["id"]}.items():
        found.set_model_version_tag(recipe, str(number), tag, value)
    return evidence


def waits_since(state: str) -> datetime | None:
    """Since when a verdict in this state has waited for a person; None in any other."""
    return datetime.fromisoformat(state.removeprefix(WAITING)) if state.startswith(WAITING) else None


def mark(found, recipe: str, number: int, state: str) -> None:
    """What came of the verdict: decided, waiting since TIME, promoted, refused or lapsed."""
    found.set_model_version_tag(recipe, str(number), "verdict_state", state)


def evidence_of(run_id: str, tags: Mapping[str, str]) -> str:
    """The evidence of a version's newest verdict, 'none' where it has no verdict."""
    return f"{run_id} {tags['verdict_sha256']}" if "verdict_sha256" in tags else NONE


def place(evidence: str, end: str = "json") -> str:
    """Where the document or its page lies in the artifacts of its run."""
    return f"{FOLDER}/{evidence.partition(' ')[2][:16]}.{end}"


def find(found, evidence: str) -> dict | None:
    """The verdict's document; None where there is none, or it or its page is not as it was written."""
    run_id, _, written = evidence.partition(" ")
    document, shown = (tracking.kept(found, run_id, place(evidence, end)) if written else None
                       for end in ("json", "html"))
    if document is None or provenance.sha256(document) != written:
        return None
    kept = json.loads(document.read_text(encoding="utf-8"))
    return kept if shown is not None and provenance.sha256(shown) == kept["page_sha256"] else None


def problems(found, log: Log) -> list[str]:
    """The entries of a history whose verdict is not the one that was written with them, in words."""
    return [f"entry {e.number} rests on {place(e.evidence)} of run {e.evidence.partition(' ')[0]}, and that or its "
            "page is gone or was changed" for e in log.events if e.evidence != NONE and find(found, e.evidence) is None]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def text(kept: Mapping) -> list[str]:
    """The verdict, both scores and every rule, for a terminal."""
    found, scores = kept["evidence"], []
    if test := found["test"]:
        left_out = f", {found['excluded']} left out that a model was trained on" if found["excluded"] else ""
        scores = [f"  {found['metric']} {interval(test['challenger'])} on {test['rows']} test rows{left_out}; "
                  f"{kept['champion']} {interval(test['champion'])}"]
    rules = [(rule["name"], rule["found"], rule["limit"], rule["met"]) for rule in kept["rules"]]
    first, second = (max(len(rule[i]) for rule in rules) for i in (0, 1))
    return [f"{kept['challenger']} against {kept['champion']}: {kept['verdict'].upper()}",
            *scores,
            *(f"  {'ok' if met else 'NO':4}{name:{first}}  {found:{second}}  {limit}"
              for name, found, limit, met in rules),
            f"  {kept['reason']}"]


def page(kept: Mapping) -> str:
    """The document for people: self-contained HTML, which MLflow shows."""
    def table(header: list[str], rows: list[list], marks: list[bool] | None = None) -> str:
        marks = marks or [True] * len(rows)
        head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
        body = "".join(f"<tr{'' if good else ' class=no'}>" + "".join(
            f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row, good in
            zip(rows, marks, strict=True))
        return f"<table><tr>{head}</tr>{body}</table>"

    def measured(name: str, values: Mapping) -> list:
        return [name, values["rows"], *(interval(values[side]) for side in ("champion", "challenger", "gain"))]

    found, title = kept["evidence"], f"{kept['challenger']} against {kept['champion']}: {kept['verdict']}"
    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(kept['reason'])}</p><p>Decided {kept['decided']}, "
             f"verdict {kept['id'][:16]}</p><h2>Rules</h2>",
             table(["rule", "found", "asked", "met"],
                   [[r["name"], r["found"], r["limit"], "yes" if r["met"] else "NO"] for r in kept["rules"]],
                   [r["met"] for r in kept["rules"]])]
    if found["test"]:
        rows = [measured("test", found["test"]), *(measured(f"slice {n}", v) for n, v in found["slices"].items()),
                *(measured(f"guard {n}", v) for n, v in found["guards"].items())]
        parts += [f"<h2>{html.escape(found['metric'])}, with {100 * kept['settings']['confidence']:g} % intervals</h2>",
                  table(["on", "rows", kept["champion"], kept["challenger"], "gain"], rows),
                  f"<p>{found['excluded']} test rows were left out because a model was trained on them. The "
                  f"challenger was trained from {found['seeds']} seed(s).</p>"]
    for name, rows in kept["examples"].items():
        if rows:
            parts += [f"<h2>Examples {name} most</h2><p>{CHANGE}</p>",
                      table(list(rows[0]), [list(row.values()) for row in rows])]
    parts += ["<h2>Rules as set</h2>", f"<pre>{html.escape(json.dumps(kept['settings'], indent=2))}</pre>"]
    return (f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
            + "\n".join(parts) + "\n")


def interval(values: list) -> str:
    # rounded twice, as metrics.json and its tables are, so that a score looks the same in both
    value, low, high = (v if isinstance(v, str) else f"{round(v, 6):.4f}" for v in values)
    return f"{value} ({low} to {high})"
