"""A challenger and the champion -> a verdict, kept with the version, logged, and acted upon.

Models are scored outside the lock of decisions, so that a rollback need not wait; a champion that has changed by then,
here or on another machine, is another one to compare with.
"""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from flows import seeds, waiting
from steps import (
    attempts,
    gate,
    history,
    journal,
    params,
    provenance,
    recipes,
    register,
    registry,
    tracking,
    verdicts,
)
from steps.gate import Evidence, Pair
from steps.registry import Version
from steps.schema import InputError, Recipe
from steps.verdicts import DECIDED, LAPSED, NOTED, PROMOTED, REFUSED, WAITING

ANSWERS = ("yes", "no", LAPSED)
WITHOUT_EFFECT = {"approval", "examples"}       # on a verdict, of the gate's settings

def decide(name: str, approve: str | None = None, attempt: str | None = None) -> tuple[int, str]:
    """Decides on a recipe's challenger, or on `sts@3`; returns the version and the state of its verdict.

    `approve` is auto, ask, a person's answer yes or no, or lapsed; else the policy of params.yaml. A verdict that was
    reached before on the same things is not measured again, and an answer is one to the verdict that was shown: it
    needs no data here. What was in charge once comes back by an answer alone, so that a schedule does not undo a
    rollback. A champion that was put in charge unjudged is judged now, and stays. Raises InputError where a newer
    `attempt` than this has begun, or a verdict waits for a person and cannot be reached anew here.
    """
    recipe, _, which = name.partition("@")
    project, found = params.load(), tracking.client()
    settings = project.recipe(recipe)
    approve = approve or settings.gate.approval.policy
    judged = kept = None
    while True:
        with history.deciding(recipe):
            attempts.check(found, recipe, attempt)
            challenger, champion = sides(found, recipe, which)
            version, tags = challenger
            evidence, state = verdicts.evidence_of(version.run_id, tags), tags.get("verdict_state", DECIDED)
            if registry.CHAMPION in version.aliases and "verdict_id" in tags:
                if state != PROMOTED:
                    verdicts.mark(found, recipe, version.number, PROMOTED)
                return version.number, PROMOTED
            now = (version.number, champion and champion[0].number)
            if now == judged:
                evidence, state = verdicts.keep(found, recipe, version.number, version.run_id, kept), DECIDED
            else:
                kept = verdicts.find(found, evidence)
                if not (approve in ANSWERS and kept and stands(kept, found, recipe, version, champion, settings)):
                    case = Case(recipe, settings, project, found, challenger, champion)
                    if tags.get("verdict_id") != case.identity:
                        kept = None
                    if not kept and state.startswith(WAITING) and approve not in ANSWERS and case.lacking():
                        raise InputError(f"{recipe}@{version.number} waits for a person, and its verdict cannot be "
                                         f"reached anew here: {'; '.join(case.lacking())}; answer it with: "
                                         f"evergreen promote {recipe}@{version.number} --yes, or --no")
            if kept:
                try:
                    return version.number, settle(found, version, now[1], kept, evidence, state, approve, settings)
                except history.Overtaken:       # by another machine's decision on the same store
                    judged = None
                    continue
        judged, kept = now, case.judge()


def sides(found, recipe: str, which: str) -> tuple[tuple[Version, Mapping], tuple[Version, Mapping] | None]:
    """The challenger, or version `which`, and whom it meets: the champion, or the one whose place it took unjudged."""
    challenger, champion = registry.find(found, recipe, which or registry.ALIAS), registry.champion(found, recipe)
    if challenger is None:
        raise InputError(f"{recipe} has no {'version ' + which if which else 'challenger'} to decide on; "
                         f"make one: evergreen run {recipe}")
    number = challenger[0].number
    if champion and champion[0].number == number and "verdict_id" not in challenger[1]:
        before = history.replaced(found, recipe, number)
        champion = registry.find(found, recipe, str(before)) if before else None
    return challenger, champion


def stands(kept: Mapping, found, recipe: str, version: Version, champion: tuple[Version, Mapping] | None,
           settings: Recipe) -> bool:
    """Whether a verdict may be answered: it says promote, on these two sides and by these rules."""
    if kept["verdict"] != "promote" or (champion is None and history.lost(found, recipe, version.number)):
        return False
    rules = verdicts.plain(settings.gate.model_dump(exclude=WITHOUT_EFFECT))
    return kept["champion"] == opponent(recipe, settings, champion) and rules == {
        key: value for key, value in kept["settings"].items() if key not in WITHOUT_EFFECT}


def opponent(recipe: str, settings: Recipe, champion: tuple[Version, Mapping] | None) -> str:
    """Whom a challenger meets, by name."""
    base = "the majority class" if settings.kind == "classification" else "the base model"
    return f"{recipe}@{champion[0].number}" if champion else base


class Case:
    """The two sides of a decision, whether they may be compared, and the identity of the verdict on them."""

    def __init__(self, recipe: str, settings: Recipe, project: params.Project, found,
                 challenger: tuple[Version, Mapping], champion: tuple[Version, Mapping] | None):
        self.recipe, self.settings, self.project, self.found = recipe, settings, project, found
        self.challenger, self.champion = challenger, champion
        self.data = register.folders(recipe)["data"]
        self.metric = recipes.get(recipe).METRIC
        self.broken: dict[str, str] = {}
        ours, theirs = challenger[1], champion[1] if champion else {}
        self.ours = self.stored("challenger", *challenger)
        self.theirs = self.stored("champion", *champion) if champion else self.base(ours)
        if lost := None if champion else history.lost(found, recipe, challenger[0].number):
            self.broken["champion"] = (f"{recipe}@{lost} was in charge and no version is now, so there is nothing to "
                                       f"compare with; put one in charge: evergreen rollback {recipe} --to N")
        self.seeds = seeds.trained(recipe) if seeds.weights(Path(), recipe) == ours.get("weights_sha256") else []
        self.check_tests(ours, theirs)
        rules = settings.gate.model_dump(exclude=WITHOUT_EFFECT)
        self.identity = provenance.digest([
            recipe, project.seed, project.threads, settings.evaluate.batch_size, rules, sorted(self.broken),
            getattr(settings.prepare, "labels", None),
            [seeds.weights(folder, recipe) for folder in self.seeds],
            *([side[0].number, side[1].get("files_sha256"), {k: v for k, v in side[1].items() if k.startswith("test_")}]
              if side else ["base", ours.get("base_model_sha256")] for side in (challenger, champion))])

    def stored(self, who: str, version: Version, tags: Mapping) -> dict:
        """The verified files of a version and the keys of its training rows, as contest.Contestant has them."""
        try:
            _, folder = registry.resolve(f"{self.recipe}@{version.number}")
            found = {"folder": folder / "model.sentence_transformer"}
            if self.settings.kind == "classification":
                found = {"folder": folder / "model", "tokenizer": folder / "components/tokenizer"}
            return {**found, "seen": registry.artifact(self.found, version, "evaluation/seen.npy",
                                                       tags.get("seen_sha256"))}
        except InputError as error:
            self.broken[f"{who} verified"] = str(error)
            return {}

    def base(self, tags: Mapping) -> dict:
        """What the first model of a recipe is compared with."""
        if self.settings.kind == "classification":
            return {"folder": None, "seen": None}
        folder = Path(self.settings.base_model)
        weights = folder / "model.safetensors"
        if not weights.exists() or provenance.sha256(weights) != tags.get("base_model_sha256"):
            self.broken["base model"] = (f"{folder} is not the base model that {self.recipe}@"
                                         f"{self.challenger[0].number} was trained from")
        return {"folder": folder, "seen": folder / "seen.npy"}

    def check_tests(self, ours: Mapping, theirs: Mapping) -> None:
        """The bytes of the test splits must be those that the challenger was registered with."""
        test, who = self.data / "test.arrow", f"{self.recipe}@{self.challenger[0].number}"
        again = f"its data or parameters changed since; first: evergreen run {self.recipe}"
        if not test.exists():
            self.broken["test digest"] = f"{test} is not here; first: evergreen run {self.recipe}"
        elif provenance.sha256(test) != ours.get("test_sha256"):
            self.broken["test digest"] = f"{test} is not the one that {who} was registered with: {again}"
        elif provenance.folder_sha256(self.data / "tasks") != ours.get("tasks_sha256"):
            self.broken["tasks digest"] = f"{self.data / 'tasks'} is not what {who} was registered with: {again}"
        key = "test_content_sha256"
        self.same_test = not theirs or theirs.get(key, "none of the champion") == ours.get(key)
        if not self.same_test and self.settings.gate.test_set == "same":
            self.broken["test set"] = (
                f"{self.recipe}@{self.champion[0].number} was registered with another test set; if it was meant to "
                f"change, set recipes.{self.recipe}.gate.test_set: changed")

    def lacking(self) -> list[str]:
        """Why this folder cannot tell: it has other data than the version was made of, or none."""
        return [self.broken[name] for name in ("test digest", "tasks digest", "base model") if name in self.broken]

    def judge(self) -> dict:
        """The verdict's document; both models are scored where they may be compared."""
        ours, theirs = self.challenger[1], self.champion[1] if self.champion else {}
        other = theirs.get("weights_sha256") if self.champion else ours.get("base_model_sha256")
        identical = ours.get("weights_sha256") == other
        examples: Mapping = {}
        known = {"metric": self.metric, "broken": self.broken, "identical": identical, "first": not self.champion}
        if not self.broken and not identical:
            from steps import contest, seen

            sides = [contest.Contestant(folder, None, seen.read(folder)) for folder in (
                seed / register.folders(self.recipe)["model"] for seed in self.seeds)]
            first, champion = (contest.Contestant(side["folder"], side.get("tokenizer"), seen.load(side["seen"]))
                               for side in (self.ours, self.theirs))
            measured, examples = contest.measure(self.recipe, self.settings, self.project, self.data,
                                                 [first, *sides], champion, not self.champion)
            known |= measured | {
                "registered": Pair(*(self.number(tags, f"test_{self.metric}") for tags in (ours, theirs))),
                "same_test": self.same_test,
                "champion_rows": self.number(theirs, "test_rows")}
        evidence = Evidence(**known)
        names = {"challenger": f"{self.recipe}@{self.challenger[0].number}",
                 "champion": opponent(self.recipe, self.settings, self.champion)}
        return verdicts.document(self.identity, self.recipe, names, gate.decide(evidence, self.settings.gate),
                                 evidence, self.settings.gate, examples)

    def number(self, tags: Mapping, name: str) -> float | None:
        """What the version was registered with; None where it has nothing of this name."""
        try:
            return float(tags[name])
        except (KeyError, ValueError):
            return None


def settle(found, version: Version, champion: int | None, kept: Mapping, evidence: str, state: str, approve: str,
           settings: Recipe) -> str:
    """Moves the alias, or writes down why not, on the evidence of the kept verdict. Returns the verdict's state.

    Raises history.Overtaken where another is in charge than the champion that the verdict is about.
    """
    recipe, number = version.recipe, version.number
    unjudged = registry.CHAMPION in version.aliases
    over = number if unjudged else champion

    def close(new: str, verdict: str, why: str) -> str:
        return waiting.write_down(found, version, new, verdict, why, evidence, over)

    if unjudged:
        return close(PROMOTED, kept["verdict"], kept["reason"])
    if kept["verdict"] != "promote":
        return state if state == NOTED else close(NOTED, kept["verdict"], kept["reason"])
    if approve == "no":
        return close(REFUSED, "hold", f"a person refused; the rules said promote: {kept['reason']}")
    hours = settings.gate.approval.hours
    if approve == LAPSED and state in (REFUSED, LAPSED):
        return state
    if approve == LAPSED or (approve == "ask" and waiting.late(state, hours)):
        return close(LAPSED, "hold", waiting.unconfirmed(hours, kept))
    if approve == "auto" and (state == REFUSED or history.was_in_charge(found, recipe, number)):
        return state
    if approve == "ask":
        if state == DECIDED:
            state = WAITING + datetime.now(UTC).isoformat(timespec="seconds")
            verdicts.mark(found, recipe, number, state)
        return state
    why = kept["reason"] if approve == "auto" else f"confirmed by a person; {kept['reason']}"
    history.move(found, recipe, number, why, "promote", evidence=evidence, over=over)
    verdicts.mark(found, recipe, number, PROMOTED)
    return PROMOTED


def promote(name: str, approve: str | None = None) -> str:
    """Decides, asks whoever sits at the terminal where a person must confirm, and returns the verdict as text."""
    recipe = name.partition("@")[0]
    number, state = decide(name, approve)
    return asked(recipe, number, state)


def asked(recipe: str, number: int, state: str) -> str:
    """The verdict as text, after a question where it waits for one and there is a terminal."""
    if state.startswith(WAITING) and sys.stdin.isatty():
        print(text(recipe, number))
        try:
            answer = input(f"promote {recipe}@{number}? [y/N] ").strip().lower()
        except EOFError:        # Ctrl-D: no answer yet
            print()
        else:
            decide(f"{recipe}@{number}", "yes" if answer in ("y", "yes") else "no")
    return text(recipe, number)


def text(recipe: str, number: int) -> str:
    """The version's verdict with every rule, and what came of it."""
    found = tracking.client()
    version, tags = registry.find(found, recipe, str(number))
    champion = registry.champion(found, recipe)
    evidence = verdicts.evidence_of(version.run_id, tags)
    kept = verdicts.find(found, evidence)
    if kept:
        lines = [*verdicts.text(kept), f"  as a page: {verdicts.place(evidence, 'html')} of run {version.run_id}"]
    else:
        why = "no verdict" if evidence == journal.NONE else f"its verdict, {verdicts.place(evidence)}, was changed"
        lines = [f"{recipe}@{number}: {why}"]
    state, name = tags.get("verdict_state", ""), f"{recipe}@{number}"
    stays = f"{recipe}@{champion[0].number} stays in charge" if champion else f"{recipe} has no champion yet"
    if champion and champion[0].number == number:
        against = kept and kept["verdict"] != "promote"
        lines.append(f"  {name} is the champion" + (
            f", though the rules said {kept['verdict']}; undo it: evergreen rollback {recipe}" if against else ""))
    elif kept and kept["verdict"] == "promote":
        why = {REFUSED: "a person refused", LAPSED: "nobody confirmed in time"}.get(
            state, "it waits for a person" if state.startswith(WAITING) else "it was the champion before")
        lines.append(f"  {why}: {stays}; put {name} in charge with: evergreen promote {name} --yes")
    else:
        lines.append(f"  {stays}")
    return "\n".join(lines)
