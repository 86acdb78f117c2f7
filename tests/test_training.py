"""What every training has: curves by hand, arguments by hand, every recipe trains, and no test row is looked at."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from steps import batching, classification, embedding, evaluate, params, prepare, progress, recipes, training
from steps import train as step
from steps.provenance import sha256
from steps.schema import InputError, Recipe
from tests.project import ROOT, write_rows
from tests.small import SAMPLES, changed, taught


def history(selects_by: str, *evaluations: tuple) -> training.History:
    """Curves of which each evaluation is (epoch, train loss, dev loss, score)."""
    found = training.History(selects_by, "f1_macro", 1, 9, lambda metrics, step: None)
    found.epochs = [{"epoch": epoch, "step": round(10 * epoch), "train_loss": train, "dev_loss": dev,
                     "dev_f1_macro": score} for epoch, train, dev, score in evaluations]
    found.seconds = [1.0] * len(evaluations)
    return found


# Curves


@pytest.mark.parametrize("dev, epoch", [
    ([9.0, 0.7, 0.6, 0.5], None),
    ([9.0, 0.7, 0.5, 0.6, 0.8], 3),
    ([0.1, 0.7, 0.6, 0.5], None),               # what stands before training counts for nothing
    ([9.0, 0.7, 0.8, 0.6, 0.5], None),          # it rose once and fell again
    ([9.0, 0.7, 0.8, 0.6, 0.65], 4),
    ([9.0, 0.6, 0.5, 0.58, 0.579], 3),          # and is still above its lowest at the end
    ([9.0, 0.5, 0.6, 0.7], 2),
    ([9.0, 0.5, 0.5, 0.5], None),
    ([9.0, 0.5], None),
    ([None, None, None], None),
])
def test_a_model_overfits_from_where_devs_loss_was_lowest(dev, epoch):
    rows = [(number, 1.0 / (1 + number), loss, 0.5) for number, loss in enumerate(dev)]
    assert history("f1_macro", *rows).overfits_from() == epoch


def test_a_training_whose_loss_rises_with_devs_does_not_overfit():
    assert history("f1_macro", (1, 0.5, 0.5, 0.5), (2, 0.6, 0.6, 0.5)).overfits_from() is None
    rows = [(1, 0.6, 0.6, 0.5), (2, 0.5, 0.5, 0.5), (3, 0.4, 0.58, 0.5), (4, 0.41, 0.62, 0.5)]
    assert history("f1_macro", *rows).overfits_from() == 3      # though the training's rose a little at the end


def test_part_of_an_epoch_is_named_as_such():
    assert history("f1_macro", (0.25, 1, 0.5, 0), (0.5, 1, 0.4, 0), (0.75, 1, 0.6, 0)).overfits_from() == 0.75


def test_an_evaluation_before_the_first_line_of_the_log_says_nothing_of_it():
    rows = [(0.25, None, 0.2, 0), (0.5, 1, 0.4, 0), (0.75, 1, 0.6, 0)]
    assert history("f1_macro", *rows).overfits_from() == 0.75


@pytest.mark.parametrize("selects_by, epoch", [("f1_macro", 2), ("loss", 3)])
def test_kept_is_the_best_on_dev_after_training_began_and_the_first_of_equals(selects_by, epoch):
    rows = [(0, None, 0.1, 0.99), (1, 1, 0.9, 0.2), (2, 1, 0.8, 0.7), (3, 1, 0.3, 0.7), (4, 1, 0.3, 0.1)]
    assert history(selects_by, *rows).kept()["epoch"] == epoch


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_on_dev_that_is_no_number_ends_the_training(loss):
    found = history("loss")
    found.on_train_begin(SimpleNamespace(num_train_epochs=1), SimpleNamespace(max_steps=9, global_step=0), None)
    with pytest.raises(InputError, match=rf"the loss on dev is {loss} after step 9, and nothing is kept; lower train"):
        found.on_evaluate(None, SimpleNamespace(epoch=1, global_step=9), SimpleNamespace(), model=None,
                          metrics={"eval_loss": loss, "eval_f1_macro": 0.5})


def test_the_table_shows_each_evaluation_what_is_kept_and_where_it_overfits():
    found = history("f1_macro", (0, None, 1.5, 0.1), (1, 1.25, 0.5, 0.75), (2, 0.75, 0.625, 0.5))
    assert found.table().splitlines() == [
        "epoch  train loss    dev loss          dev f1_macro   seconds",
        "    0           -     1.50000                0.1000       1.0",
        "    1     1.25000     0.50000                0.7500       1.0  kept",
        "    2     0.75000     0.62500                0.5000       1.0",
        "dev loss rises from epoch 2 on: the model over-fits there; what is kept is the best by f1_macro"]


def test_the_table_has_a_dash_for_a_loss_that_nothing_was_held_out_for():
    found = history("f1_macro", (0, None, None, 0.1), (1, 1.25, None, 0.75))
    assert found.table().splitlines()[1:] == [
        "    0           -           -                0.1000       1.0",
        "    1     1.25000           -                0.7500       1.0  kept"]


def test_the_time_left_counts_steps_and_not_the_evaluation_before_them(monkeypatch, capsys):
    """100 s pass before the first step, and 2 s in it; 9 are to come."""
    clock = iter([0.0, 0.0, 0.0, 100.0, 102.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "HEARTBEAT", 0)
    found, state = history("f1_macro"), SimpleNamespace(max_steps=10, global_step=0, epoch=0.5)
    found.on_train_begin(SimpleNamespace(num_train_epochs=1), state, None)
    found.on_step_begin(None, state, None)
    state.global_step = 1
    found.on_step_end(None, state, None)
    assert capsys.readouterr().out == "training 1/10 steps (10%), 18 s left\n"


# Arguments


def arguments(recipe: Recipe, rows: int, **train) -> dict:
    return training.arguments(changed(recipe, **train).train, 42, rows, Path("scratch"))


def test_warm_up_counts_steps_of_accumulated_batches(shipped):
    """100 rows in batches of 8 are 13 batches, 7 steps of two; of 3 * 7 steps a tenth is 2.1."""
    found = arguments(shipped["sts"], 100, batch_size=8, gradient_accumulation=2, epochs=3, warmup_ratio=0.1)
    assert (found["warmup_steps"], found["gradient_accumulation_steps"]) == (3, 2)


@pytest.mark.parametrize("scheduler, warmup, named", [
    ("linear", 0.1, "linear"), ("linear", 0.0, "linear"), ("constant", 0.0, "constant"),
    ("constant", 0.1, "constant_with_warmup")])
def test_a_constant_rate_is_warmed_up_where_that_is_asked(shipped, scheduler, warmup, named):
    found = arguments(shipped["sts"], 100, scheduler=scheduler, warmup_ratio=warmup)
    assert found["lr_scheduler_type"] == named


@pytest.mark.parametrize("metric, greater", [("spearman_cosine", True), ("loss", False)])
def test_a_lower_loss_and_a_higher_score_are_better(shipped, metric, greater):
    found = arguments(shipped["tsdae"], 100, metric=metric)
    assert (found["metric_for_best_model"], found["greater_is_better"]) == (f"eval_{metric}", greater)


@pytest.mark.parametrize("evaluations, batches", [(1, 12), (4, 12), (3, 12), (4, 11), (4, 7), (2, 9)])
def test_each_epoch_has_the_evaluations_asked_for_and_ends_with_one(evaluations, batches):
    found = training.History("loss", "f1_macro", evaluations, 9, lambda metrics, step: None)
    found.on_train_begin(SimpleNamespace(num_train_epochs=2),
                         SimpleNamespace(max_steps=2 * batches, global_step=0), None)
    assert len(found.marks) == 2 * evaluations
    assert {batches, 2 * batches} <= found.marks


@pytest.mark.parametrize("precision, found", [("fp32", False), ("bf16", True)])
def test_a_precision_that_is_asked_for_is_had(precision, found):
    assert training.bf16(precision) is found
    assert training.hardware(precision)["precision"] == precision


# Every recipe


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
    """Of the tiny BERT it is 0.1; tsdae has it in the decoder too."""
    recipe = small(name)
    prepare.prepare(recipes.get(name), recipe, Path("data"))
    kind = {"cola": classification}.get(name, embedding)
    for share, shares in ((None, {0.1}), (0.0, {0.0}), (0.25, {0.25})):
        trainer, _ = kind.build_trainer(recipes.get(name), changed(recipe, dropout=share), 42, Path("data"),
                                        Path(recipe.base_model), Path("scratch"), lambda *_: None)
        parts = [trainer.model] if name == "cola" else [trainer.model, trainer.loss]
        assert {layer.p for part in parts for layer in part.modules() if isinstance(layer, torch.nn.Dropout)} == shares


def test_attention_that_has_its_dropout_as_a_number_gets_it_too():
    layer = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(2, 2))
    layer[1].attention_dropout, layer[1].dropout_rate = 0.1, 0.2
    training.set_dropout(0.0, layer)
    assert (layer[0].p, layer[1].attention_dropout, layer[1].dropout_rate) == (0.0, 0.0, 0.0)


def test_dropout_where_nothing_drops_out_is_refused():
    training.set_dropout(None, torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"^train.dropout is 0.1, and the base model has no dropout; set it to null"):
        training.set_dropout(0.1, torch.nn.Linear(2, 2))


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
