"""What every training has: curves, arguments and dropout by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from steps import progress, training
from steps.schema import InputError, Recipe
from tests.small import changed


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


# Dropout


def test_attention_that_has_its_dropout_as_a_number_gets_it_too():
    layer = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(2, 2))
    layer[1].attention_dropout, layer[1].dropout_rate = 0.1, 0.2
    training.set_dropout(0.0, layer)
    assert (layer[0].p, layer[1].attention_dropout, layer[1].dropout_rate) == (0.0, 0.0, 0.0)


def test_dropout_where_nothing_drops_out_is_refused():
    training.set_dropout(None, torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"^train.dropout is 0.1, and the base model has no dropout; set it to null"):
        training.set_dropout(0.1, torch.nn.Linear(2, 2))
