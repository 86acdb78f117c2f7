"""What recipes, tasks, teachers and references of params.yaml say of each other."""

import pytest

from steps import params
from tests.test_params import GONE, OURS, edited, refusal


@pytest.mark.parametrize("keys, value, said", [
    ("recipes/nli/train/loss", "softmax", "loss softmax and train_rows triplets do not go together: softmax learns "
                                          "from pairs, every other loss from triplets"),
    ("recipes/nli/prepare/train_rows", "pairs", "loss multiple_negatives and train_rows pairs do not go together"),
    ("recipes/multilingual/dataset", "data/raw/translations",
     "dataset 'data/raw/translations' has no teacher's vectors; declare it under teachers and use data/taught/NAME"),
    ("recipes/tsdae/tasks", {}, "tasks must begin with a task `sts` that names a dev and a test split of the suite"),
    ("recipes/mlm/tasks/appliances/dev", GONE, "tasks must begin with a task `sts` that names a dev and a test split"),
])
def test_keys_that_do_not_go_together_are_named_with_the_remedy(tmp_path, keys, value, said):
    message = refusal(path := edited(tmp_path, keys, value))
    assert message.startswith(f"{path}: recipes.{keys.split('/')[1]}")
    assert said in message


def test_softmax_learns_from_pairs(tmp_path):
    values = params.read(OURS)["recipes"]["nli"]
    values["train"]["loss"], values["prepare"]["train_rows"] = "softmax", "pairs"
    assert params.load(edited(tmp_path, "recipes/nli", values)).recipe("nli").train.loss == "softmax"


def test_the_first_task_of_plain_text_must_be_sts(tmp_path):
    first = {"task": "triplet", "dev": "dev", "test": "test",
             "columns": {"anchor": "a", "positive": "p", "negative": "n"}}
    second = params.read(OURS)["recipes"]["tsdae"]["tasks"]["appliances"]
    params.load(edited(tmp_path, "recipes/tsdae/tasks", {"a": second, "b": first}))
    assert "tasks must begin with a task `sts`" in refusal(
        edited(tmp_path, "recipes/tsdae/tasks", {"a": first, "b": second}))


CLASSES = {"task": "classes", "test": "test", "columns": {"text": "text", "label": "label"}}


@pytest.mark.parametrize("recipe, labels, said", [
    ("sts", ["no", "yes"], "tasks.more: a model of the kind embedding cannot be scored on the task 'classes', which "),
    ("cola", ["acceptable", "unacceptable"], "tasks.more.labels is ['acceptable', 'unacceptable'], and the model's "
                                             "labels are ['unacceptable', 'acceptable']: give it the same, in the "),
])
def test_a_task_that_does_not_fit_the_model_is_refused(tmp_path, recipe, labels, said):
    more = {"more": CLASSES | {"labels": labels}}
    assert f"recipes.{recipe}: {said}" in refusal(edited(tmp_path, f"recipes/{recipe}/tasks", more))


def test_a_task_of_the_models_labels_and_one_of_pairs_are_taken(tmp_path):
    more = {"more": CLASSES | {"labels": ["unacceptable", "acceptable"]}}
    assert params.load(edited(tmp_path, "recipes/cola/tasks", more))
    pairs = params.read(OURS)["recipes"]["nli"]["tasks"]
    assert "cannot be scored on the task 'sts', which takes vectors" in refusal(
        edited(tmp_path, "recipes/cola/tasks", pairs))


@pytest.mark.parametrize("task", ["stss", None, 3])
def test_an_unknown_kind_of_task_is_answered_with_the_known_ones(tmp_path, task):
    message = refusal(path := edited(tmp_path, "recipes/nli/tasks/appliances/task", task))
    assert message.startswith(f"{path}: recipes.nli.tasks")
    assert message.endswith(": appliances: task must be one of classes, sts, translation, triplet")


@pytest.mark.parametrize("key, value, said", [
    ("score_range", [5.0, 0.0], " = [5.0, 0.0]: must be [lowest, highest]"),
    ("test", GONE, " is missing"),
    ("tests", "test", " is not a known key; remove it or correct its spelling"),
])
def test_a_mistake_in_a_task_is_named_by_file_and_key(tmp_path, key, value, said):
    path = edited(tmp_path, f"recipes/nli/tasks/appliances/{key}", value)
    assert refusal(path) == f"{path}: recipes.nli.tasks.appliances.{key}{said}"


@pytest.mark.parametrize("change, said", [
    ({"recipe": "stz"}, "references.old.recipe = 'stz': no such stage; known: cola, emotion, "),
    ({"model": "models/base/none"}, "references.old.model = 'models/base/none': no such stage; known: models/base/"),
    ({"model": "models/stz"}, "references.old.model = 'models/stz': no such stage; known: models/base/"),
])
def test_a_reference_to_what_is_not_there_is_named(tmp_path, change, said):
    entry = {"recipe": "sts", "model": "models/base/all-MiniLM-L6-v2"}
    params.load(edited(tmp_path, "references", {"old": entry}))
    path = edited(tmp_path, "references", {"old": entry | change})
    assert refusal(path).startswith(f"{path}: {said}")


@pytest.mark.parametrize("recipe, model, said", [
    ("cola", "models/nli", "is a model of the kind embedding, and cola one of classification; name one of that kind"),
    ("sts", "models/cola", "is a model of the kind classification, and sts one of embedding; name one of that kind"),
    ("cola", "models/emotion", "has other labels than cola; name a classifier of unacceptable, acceptable, in this "
                               "order"),
])
def test_a_model_is_compared_with_those_of_its_kind_and_labels_alone(tmp_path, recipe, model, said):
    path = edited(tmp_path, "references", {"old": {"recipe": recipe, "model": model}})
    assert refusal(path) == f"{path}: references.old.model = {model!r} {said}"


@pytest.mark.parametrize("what", ["datasets/local", "base_models/remote", "teachers"])
def test_a_name_in_whose_place_dvc_would_look_for_two_keys_is_refused(tmp_path, what):
    entry = next(iter(params.read(OURS)[what.split("/")[0]].values())) if what == "teachers" else next(
        iter(params.read(OURS)[what.split("/")[0]][what.split("/")[1]].values()))
    assert "a name has letters, digits, '_' and '-' only here: DVC finds a key of params.yaml by its path" in refusal(
        edited(tmp_path, what, {"v1.5": entry}))


def test_a_recipe_can_start_from_anothers_model_and_a_teacher_be_one(tmp_path):
    edited(tmp_path, "recipes/sts/base_model", "models/mlm")
    assert params.load(tmp_path / "params.yaml").recipe("sts").base_model == "models/mlm"
    assert params.load(edited(tmp_path, "teachers/translations/model", "models/sts"))


def test_the_targets_are_the_evaluations_of_the_recipes_and_of_what_they_are_compared_with(tmp_path):
    base = "models/base/all-MiniLM-L6-v2"
    project = params.load(edited(tmp_path, "references", {
        "old": {"recipe": "tsdae", "model": base}, "sts-by-nli": {"recipe": "sts", "model": "models/nli"},
        "plain": {"recipe": "tsdae", "model": base}}))
    assert project.targets(["tsdae"]) == ["evaluate@tsdae", "reference@old", "reference@plain"]
    assert project.targets(["nli", "sts"]) == ["evaluate@nli", "evaluate@sts", "reference@sts-by-nli"]
    assert project.targets(["cola"]) == ["evaluate@cola"]
