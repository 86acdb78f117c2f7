"""Classifiers from a tiny encoder: they learn, the best epoch is kept, names of labels stay, weights are by hand."""

import csv
import json
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from steps import batching, classification, embedding, evaluate, params, prepare
from steps.provenance import sha256
from steps.recipes import emotion
from steps.schema import InputError, Recipe
from tests.project import ROOT, write_rows
from tests.small import changed, referred

LABELS = ["calm", "cross", "glad"]
WORDS = {"calm": ["filter", "dust", "clean", "wash"], "cross": ["noise", "loud", "fan", "rattle"],
         "glad": ["water", "drip", "wall", "floor"]}


def texts(counts: dict[str, int], seed: int) -> list[list[str]]:
    """So many texts of each label, of words that no other label has, in random order."""
    draw = random.Random(seed)
    rows = [[" ".join(draw.choices(WORDS[label], k=8)), label] for label, count in counts.items()
            for _ in range(count)]
    draw.shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tiny_model) -> Recipe:
    """The emotion entry of params.yaml on three labels, calm most often in train: 90 rows, 18 of dev, 36 of test."""
    raw = tmp_path_factory.mktemp("raw")
    for seed, (split, counts) in enumerate({"train": (40, 30, 20), "dev": (6, 6, 6), "test": (9, 18, 9)}.items()):
        write_rows(raw / f"{split}.csv", [["text", "label"], *texts(dict(zip(LABELS, counts, strict=True)), seed)])
    (raw / "source.json").write_text('{"name": "moods"}', encoding="utf-8")
    shipped = params.load(ROOT / "params.yaml").recipe("emotion")
    return shipped.model_copy(update={
        "dataset": str(raw), "suite": str(raw), "base_model": str(tiny_model),
        "prepare": shipped.prepare.model_copy(update={"labels": LABELS}),
        "train": shipped.train.model_copy(update={"epochs": 6, "batch_size": 4, "learning_rate": 0.005,
                                                  "precision": "fp32", "patience": 6})})


@pytest.fixture(scope="module")
def data(tmp_path_factory, asked) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "emotion"
    prepare.prepare(emotion, asked, folder)
    return folder


def with_labels(recipe: Recipe, labels: list[str]) -> Recipe:
    return recipe.model_copy(update={"prepare": recipe.prepare.model_copy(update={"labels": labels})})


@pytest.fixture
def build(asked, data, tmp_path):
    """build(epochs=1, ...) -> the trainer and its history, on one thread."""
    def run(of=emotion, seed=42, base_model=None, **settings):
        torch.set_num_threads(1)
        return classification.build_trainer(of, changed(asked, **settings), seed, data,
                                            base_model or Path(asked.base_model), tmp_path / "scratch", lambda *_: None)
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, asked, data) -> Path:
    """A classifier that was saved after six epochs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    trainer, _ = classification.build_trainer(emotion, asked, 42, data, Path(asked.base_model), folder / "scratch",
                                              lambda *_: None)
    trainer.train()
    classification.save(trainer.model, folder / "model")
    return folder / "model"


def test_a_classifier_learns_words_that_only_one_label_has(build, data):
    trainer, history = build()
    trainer.train()
    assert history.epochs[0]["dev_f1_macro"] < 0.7
    assert history.kept()["dev_f1_macro"] > 0.95
    assert history.epochs[-1]["dev_loss"] < 0.5 * history.epochs[0]["dev_loss"]


def test_equal_seeds_give_equal_weights_and_another_seed_gives_others(build, trained, tmp_path):
    for seed in (42, 7):
        trainer, _ = build(seed=seed)
        trainer.train()
        classification.save(trainer.model, tmp_path / str(seed))
    assert sha256(tmp_path / "42/model.safetensors") == sha256(trained / "model.safetensors")
    assert sha256(tmp_path / "7/model.safetensors") != sha256(trained / "model.safetensors")


def test_the_best_epoch_on_dev_is_kept_not_the_last(build, data):
    dev = batching.load(data / "dev.arrow")["text_input_ids"][:]
    scores, seen = iter([0.1, 0.2, 0.9, 0.3]), []

    def score(logits, labels):
        seen.append(logits.copy())
        return {"f1_macro": next(scores)}
    scripted = SimpleNamespace(TASK=SimpleNamespace(scores=score), METRIC="f1_macro")
    trainer, history = build(of=scripted, epochs=3, patience=3)
    trainer.train()
    assert history.kept()["epoch"] == 2
    kept = classification.classify(trainer.model, dev, 64)
    assert np.allclose(kept, seen[2], atol=1e-6) and not np.allclose(kept, seen[3], atol=1e-3)


def test_training_stops_after_the_epochs_of_patience(build):
    scores = iter([0.1, 0.9, 0.5, 0.8, 1.0])
    task = SimpleNamespace(scores=lambda logits, labels: {"f1_macro": next(scores)})
    trainer, history = build(of=SimpleNamespace(TASK=task, METRIC="f1_macro"), epochs=20, patience=2)
    trainer.train()
    assert [row["epoch"] for row in history.epochs] == [0, 1, 2, 3]


def test_the_names_of_the_labels_are_saved_with_the_model(trained, asked):
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "calm", "1": "cross", "2": "glad"}
    assert config["label2id"] == {"calm": 0, "cross": 1, "glad": 2}
    assert {p.suffix for p in trained.iterdir()} <= {".safetensors", ".json", ".txt"}


def test_the_librarys_pipeline_answers_with_the_names(trained):
    classify = pipeline("text-classification", str(trained), device="cpu")
    found = classify(["loud fan rattle", "water drip floor", "wash filter dust"])
    assert [answer["label"] for answer in found] == ["cross", "glad", "calm"]


def test_logits_equal_those_of_the_library_in_the_original_order(trained, asked):
    told = ["fan", "dust on the filter, and the fan is loud and rattles", "water", "drip drip"]
    model = AutoModelForSequenceClassification.from_pretrained(trained).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    with torch.inference_mode():
        one_by_one = [model(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in told]
    found = classification.outputs(classification.load(trained, asked), [told], 3)
    assert np.allclose(found, one_by_one, atol=1e-5)


def test_an_encoder_that_was_trained_as_one_becomes_a_classifier(build, tiny_model, tmp_path):
    embedding.save(embedding.encoder(tiny_model, 128, "mean"), tmp_path / "encoder")
    inside = embedding.encoder(tmp_path / "encoder", 128, "mean").transformers_model.state_dict()
    trainer, _ = build(base_model=tmp_path / "encoder")
    for name, weights in trainer.model.bert.state_dict().items():
        assert torch.equal(weights, inside[name]), name


# What is refused


def test_a_loss_that_explodes_stops_naming_the_step(build):
    trainer, _ = build(learning_rate=1e30)
    with pytest.raises(InputError, match=r"^the (loss|gradient's norm) is (nan|inf) at step [23], in rows \d+, "):
        trainer.train()


def test_logits_that_are_not_finite_are_refused(build):
    trainer, _ = build()
    with torch.no_grad():
        trainer.model.classifier.weight.fill_(math.nan)
    with pytest.raises(InputError, match=r"^dev f1_macro is nan: the logits are not finite; lower train.learning_rate"):
        trainer.evaluate()


def test_a_folder_without_safetensors_is_refused(trained, asked, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match=r"old has no model.safetensors; other formats of weights are not loaded"):
        classification.load(folder, asked)


def test_an_encoder_is_no_classifier_where_no_head_is_to_be_made(tiny_model, asked):
    with pytest.raises(InputError, match=r"is no classifier of calm, cross, glad: it lacks classifier.bias, "):
        classification.load(tiny_model, asked)


def test_a_classifier_keeps_its_own_labels_and_takes_the_recipes_where_it_has_none(trained, asked, tmp_path):
    def names(folder: Path, **head) -> list[str]:
        return list(classification.load(folder, other, **head).config.id2label.values())

    order = ["glad", "calm", "cross"]
    other = with_labels(asked, order)
    assert names(trained) == LABELS
    assert names(trained, new_head=True) == order
    nameless = shutil.copytree(trained, tmp_path / "nameless")
    config = json.loads((nameless / "config.json").read_text(encoding="utf-8"))
    (nameless / "config.json").write_text(json.dumps(config | {
        "id2label": {str(i): f"LABEL_{i}" for i in range(3)}, "label2id": {f"LABEL_{i}": i for i in range(3)}}))
    assert names(nameless) == order
    with pytest.raises(InputError, match=r"is no classifier of calm, cross, glad, sad: it lacks classifier"):
        classification.load(nameless, with_labels(asked, [*LABELS, "sad"]))


@pytest.mark.parametrize("labels", [[*LABELS, "sad"], ["glad", "calm", "cross"], ["calm", "cross", "happy"]])
def test_a_classifier_of_other_labels_is_not_scored(trained, asked, data, tmp_path, labels):
    project = params.load(ROOT / "params.yaml").model_copy(update={"threads": 1})
    with pytest.raises(InputError, match=(
            "model cannot be scored: its classes are calm, cross, glad, and the recipe's labels are "
            rf"{', '.join(labels)}; give recipes\.emotion\.prepare\.labels those of the model in its order")):
        evaluate.evaluate("emotion", with_labels(asked, labels), project, data, trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Weights of the classes


@pytest.mark.parametrize("chosen, weights", [("none", [1, 1, 1]), ("balanced", [90 / 120, 90 / 90, 90 / 60])])
def test_the_loss_weighs_each_row_by_its_class(build, data, chosen, weights):
    trainer, _ = build(class_weights=chosen)
    batch = trainer.data_collator([row for row in batching.load(data / "train.arrow")][:16])
    labels = batch["labels"].tolist()
    with torch.no_grad():
        trainer.model.eval()
        logits = trainer.model(batch["input_ids"], batch["attention_mask"]).logits.double()
        found = float(trainer.compute_loss(trainer.model, batch))
    unlikely = [-math.log(row.softmax(0)[label]) for row, label in zip(logits, labels, strict=True)]
    mine = [weights[label] for label in labels]
    assert found == pytest.approx(sum(w * u for w, u in zip(mine, unlikely, strict=True)) / sum(mine), abs=1e-5)
    assert len(set(labels)) == 3


def test_balanced_weights_change_what_is_learnt(build):
    ends = []
    for chosen in ("none", "balanced"):
        trainer, history = build(class_weights=chosen, epochs=1)
        trainer.train()
        ends.append(history.epochs[-1]["dev_loss"])
    assert ends[0] != pytest.approx(ends[1], abs=1e-3)


# Evaluation


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, asked, data, trained) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    project = params.load(ROOT / "params.yaml").model_copy(update={"threads": 1})
    evaluate.evaluate("emotion", asked, project, data, trained, folder)
    return folder


def test_a_reference_is_the_classifier_alone(evaluated, asked, data, trained, tmp_path, monkeypatch):
    """It has the model's own scores as before, and nothing of a majority or a gain."""
    monkeypatch.chdir(tmp_path)
    found = referred(asked, "emotion", data, trained)
    whole = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
    assert found["model"] == whole["model"] and "base" not in found
    assert found["f1_macro"] == {key: value for key, value in whole["f1_macro"].items() if key.startswith("model")}


def test_a_reference_with_other_labels_or_without_a_head_is_refused(asked, data, trained, tiny_model, tmp_path,
                                                                    monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"models/base/other cannot be scored: its classes are calm, cross, glad, and "
                                         ".*; name a classifier of these labels, in this order, under references"):
        referred(with_labels(asked, LABELS[::-1]), "emotion", data, trained)
    with pytest.raises(InputError, match=r"is no classifier of .*; choose a model with a head for these labels"):
        referred(asked, "emotion", data, tiny_model)


def test_the_base_of_a_classifier_says_what_most_rows_of_train_are(evaluated):
    """Of 36 rows of test 9 are calm, as most of train's are: accuracy 1/4; F1 of calm 2 * 9 / (9 + 36), of others 0."""
    base = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))["base"]
    assert base == pytest.approx({"accuracy": 0.25, "f1_micro": 0.25, "f1_macro": 0.4 / 3, "matthews_correlation": 0},
                                 abs=1e-6)


def test_predictions_and_base_are_written_by_their_names(evaluated, asked):
    with open(evaluated / "predictions.csv", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    with open(Path(asked.dataset) / "test.csv", encoding="utf-8", newline="") as lines:
        test = list(csv.DictReader(lines))
    assert [(row["text"], row["gold"]) for row in rows] == [(row["text"], row["label"]) for row in test]
    assert {row["base"] for row in rows} == {"calm"}
    right = sum(row["model"] == row["gold"] for row in rows)
    accuracy = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))["model"]["accuracy"]
    assert accuracy == pytest.approx(right / 36, abs=1e-6)


def test_a_slice_of_one_label_is_the_share_of_it_that_is_found(evaluated):
    """calm and glad have 9 rows, too few for a slice."""
    slices = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))["slices"]
    assert [name for name in slices if name.startswith("label: ")] == ["label: cross"]
    with open(evaluated / "predictions.csv", encoding="utf-8", newline="") as lines:
        found = [row["model"] == "cross" for row in csv.DictReader(lines) if row["gold"] == "cross"]
    assert slices["label: cross"]["rows"] == len(found) == 18
    assert slices["label: cross"]["model"] == pytest.approx(sum(found) / 18, abs=1e-6)
    assert slices["label: cross"]["base"] == 0
