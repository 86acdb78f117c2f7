"""Training on plain text: it learns to rebuild and to guess words, from noise that every epoch draws anew."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import DistilBertConfig, Qwen3Config

from steps import batching, embedding, evaluate, params, prepare, recipes
from steps import train as step
from steps.provenance import sha256
from steps.schema import InputError, Recipe
from tests.project import ROOT, sample, write_rows
from tests.small import changed

HELD_OUT = 0.1
RECIPES = ("tsdae", "mlm")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> dict[str, Path]:
    """80 lines of plain text with a source, and a suite of pairs to judge by."""
    folder = tmp_path_factory.mktemp("raw")
    texts = list(dict.fromkeys(row[0] for row in sample("train", 500)[1:]))[:80]
    (folder / "text").mkdir()
    (folder / "text/train.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (folder / "text/source.json").write_text('{"name": "lines"}', encoding="utf-8")
    for split, count in (("dev", 24), ("test", 40)):
        write_rows(folder / f"suite/{split}.csv", sample(split, count))
    return {"dataset": folder / "text", "suite": folder / "suite"}


@pytest.fixture(scope="module")
def asked(raw, tiny_model) -> dict[str, Recipe]:
    """The entries of params.yaml with a tiny model and a training of two quick epochs."""
    found = {}
    for name in RECIPES:
        shipped = params.load(ROOT / "params.yaml").recipe(name)
        found[name] = shipped.model_copy(update={
            "dataset": str(raw["dataset"]), "suite": str(raw["suite"]), "base_model": str(tiny_model),
            "prepare": shipped.prepare.model_copy(update={"held_out": HELD_OUT, "splitter": None}),
            "train": shipped.train.model_copy(update={"epochs": 2, "batch_size": 8, "learning_rate": 0.003,
                                                      "evaluations": 1, "precision": "fp32"})})
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory, asked) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("prepared")
    for name, settings in asked.items():
        prepare.prepare(recipes.get(name), settings, folder / name)
    return {name: folder / name for name in RECIPES}


@pytest.fixture
def build(asked, data, tmp_path):
    """build("tsdae", epochs=1, ...) -> the trainer and its history, on one thread."""
    def run(name: str, of: Path | None = None, seed: int = 42, **settings):
        torch.set_num_threads(1)
        recipe = changed(asked[name], **settings)
        return embedding.build_trainer(recipes.get(name), recipe, seed, of or data[name], Path(recipe.base_model),
                                       tmp_path / "scratch", lambda *_: None)
    return run


def seen_in(trainer, column: int) -> list[list[list[int]]]:
    """Trains -> for each epoch the token ids of the texts that the loss saw in that column, padding off."""
    epochs: list[list[list[int]]] = []

    def note(module, arguments):
        if module.encoder.training:
            features = arguments[0][column]
            epoch = trainer.data_collator.batches.epoch
            epochs.extend([] for _ in range(epoch + 1 - len(epochs)))
            epochs[epoch] += [ids[mask == 1].tolist() for ids, mask in
                              zip(features["input_ids"], features["attention_mask"], strict=True)]

    trainer.loss.register_forward_pre_hook(note)
    trainer.train()
    return epochs


# Training


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_falls_on_train_and_on_text_that_is_held_out(build, name):
    trainer, history = build(name, epochs=4)
    trainer.train()
    rows = history.epochs
    assert rows[1]["train_loss"] > rows[2]["train_loss"] > rows[4]["train_loss"]
    assert rows[4]["dev_loss"] < rows[0]["dev_loss"] - 0.5


@pytest.mark.parametrize("name", RECIPES)
def test_equal_seeds_give_equal_weights_and_another_seed_gives_others(build, tmp_path, name):
    hashes = []
    for number, seed in enumerate((42, 42, 7)):
        trainer, _ = build(name, seed=seed, epochs=1)
        trainer.train()
        embedding.save(trainer.model, tmp_path / str(number))
        hashes.append(sha256(tmp_path / str(number) / "model.safetensors"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_epoch_rebuilds_every_sentence_once_from_other_noise(build, data):
    texts = sorted(batching.load(data["tsdae"] / "train.arrow")["text_input_ids"][:])
    assert [sorted(epoch) for epoch in seen_in(build("tsdae")[0], 1)] == [texts, texts]
    first, second = (sorted(epoch) for epoch in seen_in(build("tsdae")[0], 0))
    assert len(first) == len(second) == len(texts)
    assert first != second


def test_every_epoch_masks_other_tokens(build, data):
    first, second = seen_in(build("mlm")[0], 0)
    assert sorted(map(len, first)) == sorted(map(len, second))
    assert sorted(first) != sorted(second)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_held_out_is_not_trained_on(build, data, name):
    numbers = {split: [*batching.load(data[name] / f"{split}.arrow")["row"][:]] for split in ("train", "held_out")}
    assert sorted([*numbers["train"], *(-1 - n for n in numbers["held_out"])]) == [*range(80)]
    assert len(numbers["held_out"]) == 8
    trainer, _ = build(name)
    assert sorted(trainer.train_dataset["row"][:]) == sorted(numbers["train"])
    assert sorted(trainer.eval_dataset["row"][:]) == sorted(numbers["held_out"])


def test_without_text_held_out_there_is_no_loss_on_it_and_the_training_goes_on(asked, tmp_path):
    settings = asked["tsdae"].model_copy(update={"prepare": asked["tsdae"].prepare.model_copy(
        update={"held_out": 0.0})})
    prepare.prepare(recipes.get("tsdae"), settings, tmp_path / "data")
    trainer, history = embedding.build_trainer(
        recipes.get("tsdae"), changed(settings, epochs=1), 42, tmp_path / "data", Path(settings.base_model),
        tmp_path / "scratch", lambda *_: None)
    trainer.train()
    assert [row["dev_loss"] for row in history.epochs] == [None, None]
    assert all(-1 <= row["dev_spearman_cosine"] <= 1 for row in history.epochs)


@pytest.mark.parametrize("name", RECIPES)
def test_the_encoder_of_the_lowest_loss_on_text_held_out_is_kept_where_it_selects(build, data, name):
    """With steps so large the loss goes up and down."""
    some = batching.load(data[name] / "dev.arrow")["sentence1_input_ids"][:]
    vectors = {}
    trainer, history = build(name, epochs=8, metric="loss", learning_rate=0.01, patience=8, scheduler="constant",
                             warmup_ratio=0.0)
    history.log = lambda metrics, step: "dev_loss" in metrics and vectors.update(
        {step: embedding.embed(trainer.model, some, 64)})
    trainer.train()
    best = min(history.epochs[1:], key=lambda row: row["dev_loss"])
    assert history.kept() == best
    kept = embedding.embed(trainer.model, some, 64)
    assert [step for step, found in vectors.items() if (found == kept).all()] == [best["step"]]


def test_evaluations_come_as_often_as_asked_in_an_epoch(build):
    """72 sentences in batches of 6 are 12 steps."""
    trainer, history = build("tsdae", epochs=1, batch_size=6, evaluations=4, patience=9)
    trainer.train()
    assert [row["step"] for row in history.epochs] == [0, 3, 6, 9, 12]
    assert [row["epoch"] for row in history.epochs] == [0, 0.25, 0.5, 0.75, 1]


# From text to a judged model


@pytest.mark.parametrize("name", RECIPES)
def test_plain_text_becomes_an_encoder_that_is_judged_by_its_first_task(asked, tmp_path, monkeypatch, name):
    for lock in step.provenance.LOCKS:
        shutil.copy(ROOT / lock, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERGREEN_TRACKING", "none")
    project = params.load(ROOT / "params.yaml").model_copy(update={"threads": 1})
    prepare.prepare(recipes.get(name), asked[name], Path("data"))
    step.train(name, asked[name], project, Path("data"), Path("model"), Path("curves"))
    evaluate.evaluate(name, asked[name], project, Path("data"), Path("model"), Path("test"))
    metrics = json.loads(Path("test/metrics.json").read_text(encoding="utf-8"))
    assert (metrics["rows"], metrics["metric"], metrics["tasks"]) == (40, "spearman_cosine", {})
    with open("test/predictions.csv", encoding="utf-8", newline="") as lines:
        assert [row["sentence1"] for row in csv.DictReader(lines)] == [row[0] for row in sample("test", 40)[1:]]
    saved = {path.name for path in Path("model").iterdir()}
    assert "model.safetensors" in saved and not any("decoder" in name or "head" in name for name in saved)


def test_the_trained_encoder_pools_as_the_recipe_says(build, tmp_path):
    for name, pooling in (("tsdae", "cls"), ("mlm", "mean")):     # the tiny BERT brings none
        embedding.save(build(name)[0].model, tmp_path / name)
        config = json.loads((tmp_path / name / "1_Pooling/config.json").read_text(encoding="utf-8"))
        assert pooling in str(config)


@pytest.mark.parametrize("config", [DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64), Qwen3Config()],
                         ids=["no decoder", "one that looks at no vector"])
def test_an_encoder_without_a_decoder_is_refused_before_anything_is_written(asked, tiny_model, tmp_path, config):
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    config.save_pretrained(folder)
    settings = asked["tsdae"].model_copy(update={"base_model": str(folder)})
    with pytest.raises(InputError, match=rf"other is a {config.model_type} encoder, for which there is no decoder"):
        prepare.prepare(recipes.get("tsdae"), settings, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_model_without_a_masked_head_is_refused_before_anything_is_written(asked, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "gpt")
    (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    settings = asked["mlm"].model_copy(update={"base_model": str(folder)})
    with pytest.raises(InputError, match=r"gpt is a gpt2 encoder without a head or a token for masked words"):
        prepare.prepare(recipes.get("mlm"), settings, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt"]
