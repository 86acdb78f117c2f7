"""Every recipe trains as its paper says, and no test row is looked at."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from steps import batching, classification, embedding, evaluate, params, prepare, recipes
from steps import train as step
from steps.provenance import sha256
from steps.schema import InputError, Recipe
from tests.project import ROOT, write_rows
from tests.small import SAMPLES, changed, taught


def train(name: str, recipe: Recipe, data: Path, model: Path) -> list[dict]:
    """steps.train on one thread -> the rows of epochs.csv."""
    project = params.load(ROOT / "params.yaml").model_copy(update={"threads": 1})
    step.train(name, recipe, project, data, model, Path("curves"))
    header, *rows = (line.split(",") for line in Path("curves/epochs.csv").read_text(encoding="utf-8").splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize("loss", ["multiple_negatives", "cached", "triplet"])
def test_nli_trains_on_triplets_with_each_loss(small, loss):
    recipe = small("nli", loss=loss)
    prepare.prepare(recipes.get("nli"), recipe, Path("data"))
    rows = train("nli", recipe, Path("data"), Path("model"))
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "0"), ("1", "3")]
    assert all(0 <= float(row["dev_accuracy_cosine"]) <= 1 and float(row["dev_loss"]) > 0 for row in rows)
    assert sha256(Path("model/model.safetensors")) != sha256(Path(recipe.base_model) / "model.safetensors")


def test_nli_trains_on_labelled_pairs_and_is_judged_on_triplets(small):
    recipe = small("nli", loss="softmax")
    recipe = recipe.model_copy(update={"prepare": recipe.prepare.model_copy(update={"train_rows": "pairs"})})
    Path("raw/train_pairs.csv").rename("raw/train.csv")
    prepare.prepare(recipes.get("nli"), recipe, Path("data"))
    assert sorted(set(batching.labels(batching.load(Path("data/train.arrow"))))) == [0, 1, 2]
    rows = train("nli", recipe, Path("data"), Path("model"))
    assert [row["dev_loss"] for row in rows] == ["", ""]        # dev has other columns than train
    assert all(0 <= float(row["dev_accuracy_cosine"]) <= 1 for row in rows)


def test_in_batch_negatives_are_the_same_computed_at_once_or_in_parts(small):
    recipe = small("nli")
    prepare.prepare(recipes.get("nli"), recipe, Path("data"))
    whole, parts = (train("nli", changed(recipe, loss=loss), Path("data"), Path(loss))[0]["dev_loss"]
                    for loss in ("multiple_negatives", "cached"))
    assert float(whole) == pytest.approx(float(parts), abs=1e-4)


@pytest.mark.parametrize("loss, distinct", [("multiple_negatives", True), ("cached", True), ("triplet", False)])
def test_texts_are_kept_apart_where_other_texts_of_a_batch_are_negatives(small, loss, distinct):
    recipe = small("nli", loss=loss)
    prepare.prepare(recipes.get("nli"), recipe, Path("data"))
    trainer, _ = embedding.build_trainer(recipes.get("nli"), recipe, 42, Path("data"), Path(recipe.base_model),
                                         Path("scratch"), lambda *_: None)
    assert (trainer.keys is not None) == distinct
    trainer.get_train_dataloader()
    assert (trainer.data_collator.batches.keys is not None) == distinct


def test_multilingual_learns_the_teachers_vectors(small):
    recipe = small("multilingual", epochs=4, learning_rate=0.01, metric="negative_mse")
    prepare.prepare(recipes.get("multilingual"), recipe, Path("data"))
    rows = train("multilingual", recipe, Path("data"), Path("model"))
    assert float(rows[-1]["train_loss"]) < float(rows[1]["train_loss"])


@pytest.mark.parametrize("name", ["sts", "cola", "tsdae"])
def test_dropout_is_that_of_params_or_the_base_models_own(small, name):
    """Of the tiny BERT it is 0.1. The decoder of tsdae has none, whatever mode it is in."""
    recipe = small(name)
    prepare.prepare(recipes.get(name), recipe, Path("data"))
    kind = {"cola": classification}.get(name, embedding)
    for share, shares in ((None, {0.1}), (0.0, {0.0}), (0.25, {0.25})):
        trainer, _ = kind.build_trainer(recipes.get(name), changed(recipe, dropout=share), 42, Path("data"),
                                        Path(recipe.base_model), Path("scratch"), lambda *_: None)
        assert dropouts(trainer.model) == shares
        assert name != "tsdae" or dropouts(trainer.loss.decoder) == {0.0}


def dropouts(module: torch.nn.Module) -> set[float]:
    return {layer.p for layer in module.modules() if isinstance(layer, torch.nn.Dropout)}


@pytest.mark.parametrize("name", ["sts", "cola", "tsdae", "mlm"])
def test_weights_of_16_bits_are_trained_in_32(small, tiny_model, name):
    """In bf16 a step of 2e-5 is lost beside a weight of 0.05."""
    recipe = small(name)
    shutil.copytree(tiny_model, "half")
    AutoModel.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained("half")
    recipe = recipe.model_copy(update={"base_model": "half"})
    prepare.prepare(recipes.get(name), recipe, Path("data"))
    kind = {"cola": classification}.get(name, embedding)
    trainer, _ = kind.build_trainer(recipes.get(name), recipe, 42, Path("data"), Path("half"), Path("scratch"),
                                    lambda *_: None)
    parts = [trainer.model] if name == "cola" else [trainer.model, trainer.loss]
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.float32}


def test_rows_that_find_no_batch_without_their_texts_are_counted(small, capsys):
    recipe = small("nli", batch_size=4)
    write_rows(Path("raw/train.csv"), [["anchor", "positive", "negative"], *(
        [f"anchor {i % 2}", f"positive {i}", f"negative {i}"] for i in range(20))])
    prepare.prepare(recipes.get("nli"), recipe, Path("data"))
    embedding.build_trainer(recipes.get("nli"), recipe, 42, Path("data"), Path(recipe.base_model), Path("scratch"),
                            lambda *_: None)[0].get_train_dataloader()
    assert "10 of 20 rows of train find no batch of 4 without their texts" in capsys.readouterr().out


def test_a_student_of_other_dimensions_than_its_teacher_is_refused(small):
    recipe = small("multilingual")
    for split in ("train", "dev", "test"):
        Path(f"raw/{split}.parquet").unlink()
        write_rows(Path(f"raw/{split}.csv"), [["english", "non_english"], *(
            [f"{split} {i}", f"{split} number {i}"] for i in range(20))])
    taught(Path("raw"), 16)
    prepare.prepare(recipes.get("multilingual"), recipe, Path("data"))
    with pytest.raises(InputError, match=r"^the teacher's vectors have 16 dimensions and the student's 32; give "
                                         "the teacher in params.yaml dimensions: 32"):
        train("multilingual", recipe, Path("data"), Path("model"))
    assert not Path("model").exists()


@pytest.mark.parametrize("name", SAMPLES)
def test_no_row_of_test_reaches_training_or_selection(small, name):
    """Garbage in place of test.arrow changes nothing: it is never opened."""
    recipe = small(name)
    prepare.prepare(recipes.get(name), recipe, Path("data"))
    shutil.copytree("data", "garbage")
    for path in (Path("garbage/test.arrow"), *Path("garbage/tasks").iterdir()):
        path.write_bytes(b"garbage")
    curves = [train(name, recipe, Path(data), Path(f"model-{data}")) for data in ("data", "garbage")]
    assert curves[0] == curves[1]
    assert sha256(Path("model-data/model.safetensors")) == sha256(Path("model-garbage/model.safetensors"))


@pytest.mark.parametrize("name", ["sts", "cola"])
def test_every_epoch_shows_every_row_once_in_another_order(small, name):
    recipe = small(name, epochs=3, patience=9)
    prepare.prepare(recipes.get(name), recipe, Path("data"))
    kind = {"sts": embedding, "cola": classification}[name]
    trainer, _ = kind.build_trainer(recipes.get(name), recipe, 42, Path("data"), Path(recipe.base_model),
                                    Path("scratch"), lambda *_: None)
    rows = [str(row) for row in batching.load(Path("data/train.arrow"))]
    collate, seen = trainer.data_collator, []

    def note(batch: list[dict]) -> dict:
        seen.extend(row for row in map(str, batch) if row in rows)      # the others are dev's
        return collate(batch)

    note.valid_label_columns = ("label",)
    trainer.data_collator = note
    trainer.train()
    epochs = [seen[start:start + len(rows)] for start in range(0, len(seen), len(rows))]
    assert [sorted(epoch) for epoch in epochs] == [sorted(rows)] * 3
    assert len({str(epoch) for epoch in epochs}) == 3


def test_a_model_says_whose_child_it_is(small):
    recipe = small("sts")
    prepare.prepare(recipes.get("sts"), recipe, Path("data"))
    train("sts", recipe, Path("data"), Path("first"))
    train("sts", recipe.model_copy(update={"base_model": "first"}), Path("data"), Path("second"))
    parents = json.loads(Path("second/lineage.json").read_text(encoding="utf-8"))["base_model"]
    assert parents == {**json.loads(Path("first/lineage.json").read_text(encoding="utf-8")),
                       "weights_sha256": sha256(Path("first/model.safetensors"))}


@pytest.mark.parametrize("recipe", ["cola", "emotion"])
def test_the_shipped_classification_recipes_train_on_the_samples(tmp_path, tiny_model, monkeypatch, recipe):
    shipped = params.load(ROOT / "params.yaml").recipe(recipe)
    sample = ROOT / "samples" / {"cola": "acceptability", "emotion": "moods"}[recipe]
    raw = shutil.copytree(sample, tmp_path / "raw")
    (raw / "source.json").write_text('{"name": "sample"}', encoding="utf-8")
    settings = changed(shipped, epochs=1).model_copy(update={
        "dataset": str(raw), "suite": str(raw), "base_model": str(tiny_model)})
    for lock in step.provenance.LOCKS:
        shutil.copy(ROOT / lock, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERGREEN_TRACKING", "none")
    project = params.load(ROOT / "params.yaml").model_copy(update={"threads": 1})
    prepare.prepare(recipes.get(recipe), settings, Path("data"))
    step.train(recipe, settings, project, Path("data"), Path("model"), Path("curves"))
    evaluate.evaluate(recipe, settings, project, Path("data"), Path("model"), Path("test"))
    metrics = json.loads(Path("test/metrics.json").read_text(encoding="utf-8"))
    assert (metrics["rows"], metrics["metric"]) == (180, recipes.get(recipe).METRIC)
    sources = {name for name in metrics["slices"] if name.startswith("source: ")}
    assert bool(sources) == (recipe == "cola")
