"""The room that a training needs, on the disk, in memory and on GPUs, is looked at before it."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from flows import graph, preflight, room
from steps import params, recipes, vocabulary
from steps.schema import InputError
from tests.test_preflight import passes, refusal


def weights(path: Path, rows: int) -> None:
    """A safetensors file with a header and nothing but zeros, which take no room on the disk."""
    header = json.dumps({"embeddings.word_embeddings.weight": {
        "dtype": "F32", "shape": [rows, 1000], "data_offsets": [0, rows * 4000]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + rows * 4000)


def test_parameters_are_counted_from_the_header(here, tiny_model):
    from transformers import AutoModel

    count = sum(p.numel() for p in AutoModel.from_pretrained(tiny_model).parameters())
    assert room.parameters(tiny_model) == count


def test_a_model_whose_checkpoints_do_not_fit_the_disk_is_refused(here):
    """48 bytes a parameter: weights, the best ones and two moments of AdamW, three times."""
    free = shutil.disk_usage(".").free
    weights(here / "tiny-bert/model.safetensors", free // 42_000)
    said = refusal()
    assert "sts: 3 checkpoints of tiny-bert need " in said and "free some, or choose a smaller base_model" in said


def test_the_room_that_its_own_checkpoints_have_is_a_runs_to_use(here, monkeypatch):
    monkeypatch.setattr(room, "memory", lambda processes: 1 << 60)
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


def test_a_training_that_is_as_it_was_needs_no_room(here, capsys):
    plan = graph.plan(params.load().targets(["sts"]))
    assert preflight.idle(plan, ["evaluate@sts"]) == {"sts"}
    assert preflight.idle(plan, ["train@sts"]) == preflight.idle(plan, ["import_model@tiny"]) == set()
    here.edit("recipes.sts.train.batch_size", 100_000_000)
    preflight.check_all(plan, params.load(), ["evaluate@sts"])
    with pytest.raises(InputError, match="GB of memory and there are"):
        preflight.check_all(plan, params.load(), ["import_dataset@appliances"])


def test_a_batch_that_does_not_fit_the_memory_is_refused_with_what_to_lower(here):
    here.edit("recipes.sts.train.batch_size", 100_000_000)
    assert "GB of memory and there are" in (said := refusal())
    assert "halve train.batch_size (100000000) and double train.gradient_accumulation" in said


def test_more_rows_longer_texts_and_more_layers_need_more_memory(here, tiny_model):
    settings = params.load().recipe("sts")

    def need(**changes) -> int:
        parts = {part: getattr(settings, part).model_copy(update={k: v for k, v in changes.items()
                 if hasattr(getattr(settings, part), k)}) for part in ("train", "prepare")}
        return room.activations(tiny_model, settings.model_copy(update=parts), recipes.get("sts"))

    assert need(batch_size=32) == 2 * need(batch_size=16) == 4 * need(processes=2)
    assert need(max_length=256) > 2 * need(max_length=128)
    assert need(precision="bf16") * 2 == need(precision="fp32")


@pytest.mark.parametrize("name, texts, guesses", [
    ("nli", 3, 0), ("multilingual", 2, 0), ("mlm", 1, 1), ("tsdae", 2, 1)])
def test_each_text_of_an_example_needs_memory_and_so_do_guessed_words(shipped, tiny_model, name, texts, guesses):
    """A text of tsdae stands in the batch with and without noise."""
    def need(name: str) -> int:
        parts = {"prepare": {"max_length": 64}, "train": {"batch_size": 8}}
        settings = shipped[name].model_copy(update={part: getattr(shipped[name], part).model_copy(update=same)
                                                    for part, same in parts.items()})
        return room.activations(tiny_model, settings, recipes.get(name))

    scores = 12 * vocabulary.config(tiny_model)["vocab_size"] * 64 * 8
    assert need(name) == need("sts") // 2 * texts + guesses * scores


def test_the_remedy_keeps_what_a_batch_is(shipped):
    """Accumulated gradients add no negatives, so that nli's batch is not halved."""
    train = shipped["nli"].train
    assert room.remedy(train) == "set train.loss: cached"
    assert room.remedy(train.model_copy(update={"loss": "cached"})) == "lower train.mini_batch_size (16)"
    assert room.remedy(train.model_copy(update={"loss": "triplet"})) == (
        "halve train.batch_size (32) and double train.gradient_accumulation")


def fake_cards(folder: Path, monkeypatch, *megabytes: int) -> None:
    """An nvidia-smi that answers for cards of so much memory, and a torch that could use them."""
    tool = folder / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n" + "".join(f"echo {size}\n" for size in megabytes), encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.setattr(room.importlib.metadata, "version", lambda name: "2.13.0")


def test_a_gpu_that_is_not_there_is_named(here, tmp_path, monkeypatch):
    fake_cards(tmp_path, monkeypatch, 40960, 40960)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    passes()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert refusal() == "CUDA_VISIBLE_DEVICES names GPU 2; this machine has 2, counted from 0: correct it"
    monkeypatch.setattr(room, "_cards", list)
    assert refusal().startswith("CUDA_VISIBLE_DEVICES names GPU 2, and torch 2.13.0 finds none here: mend the driver ")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    passes()


def test_the_memory_that_counts_is_that_of_the_gpus_that_training_can_use(here, tmp_path, monkeypatch):
    fake_cards(tmp_path, monkeypatch, 40960, 81920, 20480)
    for asked, megabytes in (("1", [81920]), ("1,0", [81920, 40960]), ("GPU-8f2a", [20480]), ("", []),
                             ("1,-1", [81920])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
        assert room.visible_cards() == [size << 20 for size in megabytes]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0,2")
    assert [room.memory(processes) >> 20 for processes in (1, 2, 3)] == [81920, 40960, 20480]


def test_each_process_wants_a_gpu_of_its_own(here, tmp_path, monkeypatch):
    fake_cards(tmp_path, monkeypatch, 40960, 40960)
    here.edit("recipes.sts.train.processes", 2)
    passes()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert refusal() == "sts: train.processes = 2, one GPU each, and there are 1; set it to 1"


def test_the_memory_of_a_gpu_counts_where_there_is_one(here, tmp_path, monkeypatch):
    fake_cards(tmp_path, monkeypatch, 1)
    assert room.memory() == 1 << 20
    assert "there are 0.0; halve" in refusal()
