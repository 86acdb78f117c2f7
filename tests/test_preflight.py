"""What a run would fail by later is said in its first seconds, with the fix, and no stage starts."""

import json
import os
import shutil
import struct

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from flows import preflight
from steps import params
from steps.schema import InputError
from tests.project import ROOT

TRAIN = "samples/appliances/train.csv"


def refusal() -> str:
    with pytest.raises(InputError) as caught:
        preflight.check(["sts"], params.load())
    return str(caught.value)


def passes() -> None:
    preflight.check(["sts"], params.load())


def test_a_good_project_passes_with_a_line_of_what_it_needs(here, capsys):
    passes()
    assert "sts: 0.0 M parameters; 3 checkpoints of 0.0 GB (" in capsys.readouterr().out


def test_a_run_stops_with_status_2_before_any_stage(project):
    """The one test with a process of its own: columns, licence and all the rest are named together."""
    (project / TRAIN).write_text("sentence1;sentence2;score\na;b;3\n", encoding="utf-8")
    project.edit("recipes.sts.contract.licences", ["MIT"])
    done = project.evergreen("run", "sts", check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"error: sts: {TRAIN}: column 'sentence1' is missing; the file has 'sentence1;sentence2;" in done.stderr
    assert "sts: the licence 'Apache-2.0' of data/raw/appliances is not one of contract.licences: MIT" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "data").exists() and not (project / "dvc.lock").exists()


@pytest.mark.parametrize("key, who", [("datasets.local.appliances", "data/raw/appliances"),
                                      ("base_models.local.tiny", "models/base/tiny"),
                                      ("datasets.local.suite", "data/raw/suite")])
def test_the_licences_of_data_suite_and_base_model_are_looked_at(here, key, who):
    here.edit("datasets.local.suite", params.read(here / "params.yaml")["datasets"]["local"]["appliances"])
    here.edit("recipes.sts.suite", "data/raw/suite")
    here.edit("recipes.sts.contract.licences", ["Apache-2.0"])
    passes()
    here.edit(f"{key}.licence", "CC-BY-NC-4.0")
    assert refusal() == (f"sts: the licence 'CC-BY-NC-4.0' of {who} is not one of contract.licences: Apache-2.0; use "
                         "another, or allow it")


@pytest.mark.parametrize("change, said", [
    (lambda p: (p / TRAIN).write_text("one,two,three\n", encoding="utf-8"), "column 'sentence1' is missing"),
    (lambda p: (p / TRAIN).write_bytes(b"\xff\xfes\0"), "train.csv:1: byte 0xff is not UTF-8"),
    (lambda p: (p / TRAIN).unlink(), f"appliances: {TRAIN} does not exist; correct splits in params.yaml"),
    (lambda p: p.edit("recipes.sts.tasks", {"more": {
        "task": "sts", "test": "dev", "columns": {"sentence1": "x", "sentence2": "sentence2", "score": "score"},
        "score_range": [0.0, 5.0]}}), "samples/appliances/dev.csv: column 'x' is missing")])
def test_files_that_lie_here_are_looked_at(here, change, said):
    change(here)
    assert said in refusal()


def test_data_that_will_be_fetched_anew_say_nothing(here):
    """What lies here is of another revision, whose columns were others."""
    here.edit("datasets.remote", {"elsewhere": {"url": "http://127.0.0.1:9", "licence": "MIT", "sha256": {
        "train.csv": "0" * 64}, "splits": {"train": "train.csv"}}})
    here.edit("recipes.sts.dataset", "data/raw/elsewhere")
    (here / "data/raw/elsewhere").mkdir(parents=True)
    (here / "data/raw/elsewhere/train.csv").write_text("one,two,three\n", encoding="utf-8")
    assert "column 'sentence1' is missing" in refusal()
    preflight.check(["sts"], params.load(), ["download_dataset@elsewhere"])


def test_a_chain_that_begins_with_a_model_that_its_last_recipe_cannot_train_is_refused(here):
    entry = params.read(ROOT / "params.yaml")["recipes"]["tsdae"]
    here.edit("recipes.tsdae", entry | {"base_model": "models/sts", "dataset": "data/raw/appliances", "prepare":
                                        entry["prepare"] | {"columns": {"text": "sentence1"}}})
    preflight.check(["sts", "tsdae"], params.load())
    config = json.loads((here / "tiny-bert/config.json").read_text(encoding="utf-8"))
    (here / "tiny-bert/config.json").write_text(json.dumps(config | {"model_type": "distilbert"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"^tsdae: tiny-bert is a distilbert encoder, for which there is no decoder"):
        preflight.check(["sts", "tsdae"], params.load())


TOO_LONG = (" = 129: tiny-bert has positions for 128 tokens of a text; set it to 128 or less, or choose a base model "
            "for longer texts")


def test_texts_longer_than_the_model_has_positions_for_are_refused(here):
    here.edit("recipes.sts.prepare.max_length", 129)
    assert refusal() == f"sts: recipes.sts.prepare.max_length{TOO_LONG}"
    here.edit("recipes.sts.prepare.max_length", 128)
    passes()


def test_a_model_that_the_run_makes_anew_is_not_judged_by_what_lies_here(here):
    here.edit("base_models.remote", {"elsewhere": {"url": "http://127.0.0.1:9", "licence": "MIT", "sha256": {
        "model.safetensors": "0" * 64}}})
    here.edit("recipes.sts.base_model", "models/base/elsewhere")
    here.edit("recipes.sts.prepare.max_length", 129)
    old = shutil.copytree(here / "tiny-bert", here / "models/base/elsewhere")
    assert "models/base/elsewhere has positions for 128 tokens" in refusal()
    os.truncate(old / "model.safetensors", 500)
    assert "model.safetensors is no whole safetensors model" in refusal()
    preflight.check(["sts"], params.load(), ["download_model@elsewhere"])


def test_so_are_those_of_a_teacher_and_of_a_model_that_is_scored_on_the_same_data(here):
    here.edit("references", {"plain": {"recipe": "sts", "model": "models/base/tiny"}})
    here.edit("teachers", {"talks": {
        "dataset": "data/raw/appliances", "model": "models/base/tiny", "max_length": 129, "pooling": "mean",
        "columns": {"english": "sentence1", "non_english": "sentence2"}, "batch_size": 2}})
    here.edit("recipes.sts.suite", "data/taught/talks")
    assert refusal() == f"sts: teachers.talks.max_length{TOO_LONG}"
    here.edit("recipes.sts.base_model", "models/base/elsewhere")
    here.edit("base_models.remote", {"elsewhere": {"url": "http://127.0.0.1:9", "licence": "MIT", "sha256": {
        "model.safetensors": "0" * 64}}})
    here.edit("recipes.sts.prepare.max_length", 129)
    assert f"sts: recipes.sts.prepare.max_length{TOO_LONG}" in refusal().splitlines()


def test_a_reference_that_is_no_classifier_of_the_labels_is_refused(here, tiny_model):
    emotion = params.read(ROOT / "params.yaml")["recipes"]["emotion"]
    here.edit("recipes.emotion", emotion | {"base_model": "models/base/tiny", "dataset": "data/raw/appliances",
                                            "suite": "data/raw/appliances"})
    here.edit("references", {"other": {"recipe": "emotion", "model": "models/base/tiny"}})
    said = "emotion: references.other.model = models/base/tiny: "
    remedy = "; name a classifier of sadness, joy, love, anger, fear, surprise, in this order"
    found = preflight.misfits("emotion", params.load().recipe("emotion"), params.load(), ())
    assert [f"emotion: {line}" for line in found] == [f"{said}it has no head that classifies{remedy}"]
    config = AutoConfig.from_pretrained(tiny_model, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(here / "tiny-bert")
    found = preflight.misfits("emotion", params.load().recipe("emotion"), params.load(), ())
    assert [f"emotion: {line}" for line in found] == [f"{said}its classes are bad, good{remedy}"]


@pytest.mark.parametrize("dimensions, said", [
    (None, []), (32, []), (16, ["teachers.talks: its vectors have 16 dimensions and those of models/base/tiny 32; set "
                                "teachers.talks.dimensions to 32"])])
def test_a_teacher_of_other_dimensions_than_its_student_is_refused(here, dimensions, said):
    here.edit("teachers", {"talks": {
        "dataset": "data/raw/appliances", "model": "models/base/tiny", "max_length": 64, "pooling": "mean",
        "columns": {"english": "sentence1", "non_english": "sentence2"}, "batch_size": 2, "dimensions": dimensions}})
    here.edit("recipes.sts.dataset", "data/taught/talks")
    assert list(preflight.misfits("sts", params.load().recipe("sts"), params.load(), ())) == said


BROKEN = "tiny-bert/model.safetensors is no whole safetensors model: "


@pytest.mark.parametrize("change, said", [
    (lambda p: (p / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
     BROKEN + "it has 56 bytes, and its header would have 2336927755350992246; "),
    (lambda p: (p / "model.safetensors").write_bytes(b""), BROKEN),
    (lambda p: os.truncate(p / "model.safetensors", 500), BROKEN),
    (lambda p: os.truncate(p / "model.safetensors", 99_999), BROKEN),
    (lambda p: (p / "model.safetensors").write_bytes(struct.pack("<Q", 8) + b"{\"a\": 1}"), BROKEN),
    (lambda p: os.truncate(p / "config.json", 40), "tiny-bert/config.json is no whole JSON file: "),
    (lambda p: (p / "config.json").unlink(), "tiny-bert has no config.json, which says how the model is built; ")],
    ids=["git-lfs pointer", "empty", "cut header", "cut", "other header", "cut configuration", "no configuration"])
def test_a_broken_base_model_is_one_line_that_names_the_file(here, evergreen, change, said):
    change(here / "tiny-bert")
    line, = refusal().splitlines()
    assert line.startswith(f"sts: {said}") and "fetch" in line
    checked = evergreen("check", "sts")
    assert checked.code == 2 and line.removeprefix("sts: ") in checked.out


@pytest.mark.parametrize("key, value, said", [
    ("recipes.sts.train.metric", "accuracy", "recipes.sts.train.metric = 'accuracy'"),
    ("recipes.sts.train.batch_size", 0, "recipes.sts.train.batch_size = 0"),
    ("recipes.sts.base_model", "models/base/none", "no such stage; known: ")])
def test_metric_names_and_numbers_are_refused_before(here, key, value, said):
    here.edit(key, value)
    with pytest.raises(InputError, match=said):
        params.load()


@pytest.mark.fault(7)
def test_data_and_models_that_are_yet_to_be_fetched_are_no_reason_to_stop(here):
    here.edit("base_models.local", {})
    here.edit("base_models.remote", {"tiny": {"url": "http://127.0.0.1:9", "licence": "MIT", "sha256": {
        "model.safetensors": "0" * 64}}})
    passes()
