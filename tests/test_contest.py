"""Two models on the same rows: classifiers against the majority class, guards on further tasks, times and sizes."""

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.gate import RULES
from steps import contest, gate, params
from steps.contest import Contestant
from steps.tasks import sts as task
from steps.validation import validate
from tests.project import ROOT

NOTHING_KNOWN = np.empty(0, np.uint64)
NAMES = ["unacceptable", "acceptable"]      # cola's labels, in their order


@pytest.fixture(scope="module")
def project() -> params.Project:
    return params.load(ROOT / "params.yaml").model_copy(update={"threads": 1})


def rules(**changes) -> gate.Rules:
    return gate.Rules.model_validate(RULES | {"resamples": 100} | changes)


def write(path, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def test_a_stored_classifier_against_the_majority_class(tmp_path, tiny_model, project):
    """The tokenizer of a stored version lies beside its model. Twelve rows, four of them of the smaller class."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "components/tokenizer")
    texts, labels = [f"water {i} drips" for i in range(12)], [0] * 4 + [1] * 8
    for split in ("train", "test"):
        write(tmp_path / f"data/{split}.arrow", text=texts, label=labels, text_input_ids=[[1, 2]] * 12)
    settings = project.recipe("cola").model_copy(update={"gate": rules(
        slices={"length: short": 0.5}, latency={"texts": 1, "rounds": 1, "ratio": 2.0, "milliseconds": None})})
    ours = Contestant(tmp_path / "model", tmp_path / "components/tokenizer", NOTHING_KNOWN)
    found, examples = contest.measure("cola", settings, project, tmp_path / "data", [ours], Contestant(None),
                                      first=False)
    assert found["test"].rows == 12 and found["test"].champion.value == 0.0     # one class has no correlation
    assert found["milliseconds"].champion is None and found["milliseconds"].challenger > 0
    size = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert found["megabytes"] == (size / 1e6, None)
    assert list(found["slices"]) == ["length: short"]
    assert {row["champion"] for rows in examples.values() for row in rows} <= {"acceptable"}


@pytest.mark.fault(24)
@pytest.mark.parametrize("sides, rules_missed", [
    ((NAMES, NAMES[::-1]), ["labels, champion"]), ((NAMES, [*NAMES, "unsure"]), ["labels, champion"]),
    ((NAMES[::-1], NAMES), ["labels, challenger"]), ((NAMES[::-1], None), ["labels, challenger"]),
    ((NAMES, NAMES), []), ((NAMES, ["LABEL_0", "LABEL_1"]), [])])
def test_classifiers_of_other_labels_are_held_by_name(tmp_path, tiny_model, project, sides, rules_missed):
    """Their classes are numbers: under another order the same number is another label. `test_set: changed` allows it
    no more than `same` does."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    def contestant(who: str, names: list[str] | None) -> Contestant:
        if names is None:
            return Contestant(None)
        AutoModelForSequenceClassification.from_pretrained(
            tiny_model, num_labels=len(names), id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)}).save_pretrained(tmp_path / who)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / who)
        return Contestant(tmp_path / who, None, NOTHING_KNOWN)
    for split in ("train", "test"):
        write(tmp_path / f"data/{split}.arrow", text=[f"water {i} drips" for i in range(12)], label=[0, 1] * 6,
              text_input_ids=[[1, 2]] * 12)
    settings = project.recipe("cola").model_copy(update={"gate": rules(test_set="changed")})
    ours, theirs = (contestant(who, names) for who, names in zip(("ours", "theirs"), sides, strict=True))
    found, _ = contest.measure("cola", settings, project, tmp_path / "data", [ours], theirs, sides[1] is None)
    decision = gate.decide(gate.Evidence(**found), settings.gate)
    assert [name for name in found.get("broken", {})] == rules_missed
    if rules_missed:
        assert (decision.verdict, [r.name for r in decision.rules]) == ("hold", rules_missed)
        assert "and the recipe's labels are unacceptable, acceptable; " in decision.reason
    else:
        assert found["test"].rows == 12


def test_guards_are_scored_on_their_own_task(tmp_path, tiny_model, project):
    first = [f"water {'drips ' * i}from the unit" for i in range(15)]
    second = [f"the fan {i} is loud" for i in range(15)]
    write(tmp_path / "test.arrow", sentence1=first, sentence2=second, label=np.linspace(0, 1, 15, dtype=np.float32),
          sentence1_input_ids=[[1]] * 15, sentence2_input_ids=[[1]] * 15)
    write(tmp_path / "tasks/other.arrow", sentence1=second, sentence2=first, sentence1_input_ids=[[1]] * 15,
          label=np.linspace(1, 0, 15, dtype=np.float32), sentence2_input_ids=[[1]] * 15)
    entry = validate(task.Entry, {"task": "sts", "test": "other", "score_range": [0.0, 1.0], "columns": {
        "sentence1": "sentence1", "sentence2": "sentence2", "score": "score"}}, "")
    settings = project.recipe("sts").model_copy(
        update={"tasks": {"other": entry}, "gate": rules(guards={"other": 0.1})})
    model = Contestant(tiny_model, None, NOTHING_KNOWN)
    found, examples = contest.measure("sts", settings, project, tmp_path, [model], model, first=True)
    guard = found["guards"]["other"]
    assert guard.rows == 15 and guard.gain == (0.0, 0.0, 0.0)
    assert guard.challenger.value != found["test"].challenger.value
    assert examples == {"won": [], "lost": []}
    assert found["milliseconds"] == (None, None)        # no rule asks for it
