"""What a run would fail by later is said in its first seconds, with the fix, and no stage starts."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from flows import graph, preflight
from steps import params
from steps.schema import InputError
from tests.project import ROOT, Project

TRAIN = "samples/appliances/train.csv"


@pytest.fixture
def here(project, inside) -> Project:
    inside(project)
    return project


def refusal() -> str:
    with pytest.raises(InputError) as caught:
        preflight.check(["sts"], params.load())
    return str(caught.value)


def passes() -> None:
    preflight.check(["sts"], params.load())


def weights(path: Path, rows: int) -> None:
    """A safetensors file with a header and nothing but zeros, which take no room on the disk."""
    header = json.dumps({"embeddings.word_embeddings.weight": {
        "dtype": "F32", "shape": [rows, 1000], "data_offsets": [0, rows * 4000]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + rows * 4000)


def test_a_good_project_passes_with_a_line_of_what_it_needs(here, capsys):
    passes()
    assert "sts: 0.0 M parameters; 3 checkpoints of 0.0 GB (" in capsys.readouterr().out


def test_parameters_are_counted_from_the_header(here, tiny_model):
    from transformers import AutoModel

    count = sum(p.numel() for p in AutoModel.from_pretrained(tiny_model).parameters())
    assert preflight.parameters(tiny_model) == count


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
def test_a_model_whose_checkpoints_do_not_fit_the_disk_is_refused(here):
    """48 bytes a parameter: weights, the best ones and two moments of AdamW, three times."""
    free = shutil.disk_usage(".").free
    weights(here / "tiny-bert/model.safetensors", free // 42_000)
    said = refusal()
    assert "sts: 3 checkpoints of tiny-bert need " in said and "free some, or choose a smaller base_model" in said


def test_the_room_that_its_own_checkpoints_have_is_a_runs_to_use(here, monkeypatch):
    monkeypatch.setattr(preflight, "memory", lambda processes: 1 << 60)
    free = shutil.disk_usage(".").free
    weights(here / "tiny-bert/model.safetensors", free // 42_000)
    assert "checkpoints of tiny-bert need" in refusal()
    (kept := here / ".evergreen/checkpoints/sts/0123456789abcdef/checkpoint-00000001").mkdir(parents=True)
    with open(kept / "optimizer.bin", "wb") as file:
        file.truncate(free // 2)
    passes()


@pytest.mark.fault(7)
def test_the_room_is_looked_at_again_before_training_for_a_model_that_came_meanwhile(here):
    (here / "tiny-bert").rename(here / "later")
    passes()
    preflight.before("train@sts")
    (here / "later").rename(here / "tiny-bert")
    preflight.before("train@sts")
    weights(here / "tiny-bert/model.safetensors", shutil.disk_usage(".").free // 42_000)
    with pytest.raises(InputError, match="sts: 3 checkpoints of tiny-bert need"):
        preflight.before("train@sts")
    preflight.before("evaluate@sts")


def test_what_a_server_lets_others_train_needs_no_room_here(here, monkeypatch, capsys):
    plan, project = graph.plan(params.load().targets(["sts"])), params.load()
    assert preflight.away(plan, project) == set()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert preflight.away(plan, project) == {"sts"}
    here.edit("recipes.sts.train.batch_size", 100_000_000)
    preflight.check(["sts"], params.load(), (), {"sts"})
    assert capsys.readouterr().out == ""
    assert "GB of memory and there are" in refusal()


def test_a_batch_that_does_not_fit_the_memory_is_refused_with_what_to_lower(here):
    here.edit("recipes.sts.train.batch_size", 100_000_000)
    assert "GB of memory and there are" in (said := refusal())
    assert "halve train.batch_size (100000000) and double train.gradient_accumulation" in said


def test_more_rows_longer_texts_and_more_layers_need_more_memory(here, tiny_model):
    settings = params.load().recipe("sts")

    def need(**changes) -> int:
        parts = {part: getattr(settings, part).model_copy(update={k: v for k, v in changes.items()
                 if hasattr(getattr(settings, part), k)}) for part in ("train", "prepare")}
        return preflight.activations(tiny_model, settings.model_copy(update=parts))

    assert need(batch_size=32) == 2 * need(batch_size=16) == 4 * need(processes=2)
    assert need(max_length=256) > 2 * need(max_length=128)
    assert need(precision="bf16") * 2 == need(precision="fp32")


def fake_cards(folder: Path, monkeypatch, *megabytes: int) -> None:
    """An nvidia-smi that answers for cards of so much memory, and a torch that could use them."""
    tool = folder / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n" + "".join(f"echo {size}\n" for size in megabytes), encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.setattr(preflight.importlib.metadata, "version", lambda name: "2.13.0")


def test_a_gpu_that_is_not_there_is_named(here, tmp_path, monkeypatch):
    fake_cards(tmp_path, monkeypatch, 40960, 40960)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    passes()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert refusal() == "CUDA_VISIBLE_DEVICES names GPU 2; this machine has 2, counted from 0: correct it"


def test_the_memory_that_counts_is_that_of_the_gpus_that_training_can_use(here, tmp_path, monkeypatch):
    fake_cards(tmp_path, monkeypatch, 40960, 81920, 20480)
    for asked, megabytes in (("1", [81920]), ("1,0", [81920, 40960]), ("GPU-8f2a", [20480]), ("", []),
                             ("1,-1", [81920])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
        assert preflight.visible_cards() == [size << 20 for size in megabytes]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0,2")
    assert [preflight.memory(processes) >> 20 for processes in (1, 2, 3)] == [81920, 40960, 20480]


def test_each_process_wants_a_gpu_of_its_own(here, tmp_path, monkeypatch):
    fake_cards(tmp_path, monkeypatch, 40960, 40960)
    here.edit("recipes.sts.train.processes", 2)
    passes()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert refusal() == "sts: train.processes = 2, one GPU each, and there are 1; set it to 1"


def test_the_memory_of_a_gpu_counts_where_there_is_one(here, tmp_path, monkeypatch):
    fake_cards(tmp_path, monkeypatch, 1)
    assert preflight.memory() == 1 << 20
    assert "there are 0.0; halve" in refusal()


def test_data_and_models_that_are_yet_to_be_fetched_are_no_reason_to_stop(here):
    here.edit("base_models.local", {})
    here.edit("base_models.remote", {"tiny": {"url": "http://127.0.0.1:9", "licence": "MIT", "sha256": {
        "model.safetensors": "0" * 64}}})
    passes()
