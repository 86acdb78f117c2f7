"""params.yaml and the recipe files agree, and every mistake in it is named by file, key, value and rule."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from steps import params, recipes
from tests.project import ROOT

OURS = ROOT / "params.yaml"
SHA = "0" * 64
REMOTE = {"url": "https://example.org/x", "licence": "MIT", "splits": {"train": "a.csv"}, "sha256": {"a.csv": SHA}}
GONE = object()


def edited(folder: Path, keys: str, value) -> Path:
    """A copy of the project's params.yaml with one value set or taken out."""
    values = place = params.read(OURS)
    *path, last = keys.split("/")
    for key in path:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    YAML(typ="safe", pure=True).dump(values, target := folder / "params.yaml")
    return target


def refusal(path: Path) -> str:
    with pytest.raises(params.InputError) as caught:
        params.load(path)
    return str(caught.value)


def nested(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A pydantic model and the models of its fields."""
    return [model, *(inner for field in model.model_fields.values()
                     if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
                     for inner in nested(field.annotation))]


def test_recipe_files_and_params_agree_both_ways():
    declared = set(params.read(OURS)["recipes"])
    assert {"sts", "nli", "cola", "emotion", "tsdae", "mlm", "multilingual"} <= declared     # users add their own
    assert set(params.known_recipes()) == declared == set(params.load(OURS).recipes)


def test_no_number_hides_in_a_default_but_those_that_change_nothing():
    models = [m for name in params.known_recipes() for m in nested(recipes.get(name).Params)]
    fields = {f"{m.__name__}.{name}": field for m in models for name, field in m.model_fields.items()}
    assert {"Train.epochs", "Prepare.max_length", "Evaluate.resamples", "Split.dev", "Noise.ratio"} <= set(fields)
    defaults = {name.partition(".")[2]: field.get_default(call_default_factory=True)
                for name, field in fields.items() if not field.is_required()}
    assert defaults == {
        "tasks": {}, "header": None, "limit": None, "subset": None, "source": None, "schedule": None, "dropout": None,
        "split_saving": None}


@pytest.mark.parametrize("keys, value, said", [
    ("sede", 1, "sede is not a known key; remove it or correct its spelling"),
    ("recipes/sts/train/epochz", 3, "recipes.sts.train.epochz is not a known key"),
    ("recipes/sts/evaluate/threads", 2, "recipes.sts.evaluate.threads is not a known key"),
    ("seed", GONE, "seed is missing"),
    ("recipes/sts/train/epochs", GONE, "recipes.sts.train.epochs is missing"),
    ("recipes/sts/prepare/columns/score", GONE, "recipes.sts.prepare.columns.score is missing"),
    ("recipes/nli/train/mask_ratio", 0.15, "recipes.nli.train.mask_ratio is not a known key"),
    ("recipes/cola/prepare/score_range", [0.0, 5.0], "recipes.cola.prepare.score_range is not a known key"),
    ("recipes/mlm/train/mask_ratio", GONE, "recipes.mlm.train.mask_ratio is missing"),
    ("teachers/translations/batch_size", GONE, "teachers.translations.batch_size is missing"),
    ("references", {"x": {"model": "models/sts"}}, "references.x.recipe is missing"),
    ("recipes/sts/schedule", {"cron": "0 2 * * *"}, "recipes.sts.schedule.timezone is missing"),
    ("recipes/sts/schedule", {"interval": 60, "timezone": "Mars/Base"},
     "recipes.sts.schedule.timezone = 'Mars/Base': must be a time zone such as Europe/Paris or UTC"),
])
def test_unknown_and_missing_keys_are_named(tmp_path, keys, value, said):
    assert refusal(path := edited(tmp_path, keys, value)).startswith(f"{path}: {said}")


def test_a_mistyped_key_is_one_error_and_names_the_right_one(tmp_path):
    train = params.read(OURS)["recipes"]["sts"]["train"]
    path = edited(tmp_path, "recipes/sts/train", {"epoch" if k == "epochs" else k: v for k, v in train.items()})
    assert refusal(path) == f"{path}: recipes.sts.train.epoch is not a known key; did you mean epochs?"


@pytest.mark.parametrize("key, value, rule", [
    # wrong type
    ("seed", "42", "Input should be a valid integer"),
    ("seed", True, "Input should be a valid integer"),
    ("recipes.sts.train.epochs", 4.0, "Input should be a valid integer"),
    ("recipes.sts.train.learning_rate", "2e-5 ", "Input should be a valid number"),
    ("recipes.sts.train.length_grouping", "yes", "Input should be a valid integer"),
    ("recipes.sts.train.eval_batch_size", 0, "Input should be greater than or equal to 1"),
    ("recipes.sts.prepare.score_range", 5, "Input should be a valid list"),
    ("recipes.sts", "train", "Input should be a valid dictionary or instance of Params"),
    # out of range
    ("seed", -1, "Input should be greater than or equal to 0"),
    ("seed", 2**32, "Input should be less than or equal to 4294967295"),       # numpy takes no larger one
    ("drift.seed", 2**32, "Input should be less than or equal to 4294967295"),
    ("recipes.sts.prepare.split.seed", 2**32, "Input should be less than or equal to 4294967295"),
    ("threads", 0, "Input should be greater than or equal to 1"),
    ("recipes.sts.train.epochs", 0, "Input should be greater than or equal to 1"),
    ("recipes.sts.train.learning_rate", 0.0, "Input should be greater than 0"),
    ("recipes.sts.train.learning_rate", float("inf"), "Input should be a finite number"),
    ("recipes.sts.train.warmup_ratio", 1.0, "Input should be less than 1"),
    ("recipes.sts.train.precision", "fp8", "Input should be 'auto', 'bf16' or 'fp32'"),
    ("recipes.sts.train.metric", "accuracy", "Input should be 'spearman_cosine' or 'pearson_cosine'"),
    ("recipes.sts.prepare.split.dev", 1.0, "Input should be less than 1"),
    ("recipes.sts.evaluate.confidence", 0.5, "Input should be greater than 0.5"),
    ("recipes.sts.evaluate.resamples", 99, "Input should be greater than or equal to 100"),
    # paths, revisions, hashes
    ("recipes.sts.dataset", "data/../../secret", "must be a path inside the project, without '..'"),
    ("recipes.sts.base_model", "/models/sts", "must be a path inside the project, without '..'"),
    ("published.datasets.stsb.revision", "main", "must be a commit hash: 40 hexadecimal digits, not a branch or tag"),
    ("datasets.local.appliances.splits", "train.csv", "Input should be a valid dictionary"),
    ("base_models.remote.all-MiniLM-L6-v2.revision", "main", "must be a commit hash: 40 hexadecimal digits, "
                                                             "not a branch or tag"),
    ("base_models.remote.all-MiniLM-L6-v2.revision", "1110a24", "must be a commit hash"),
    ("base_models.remote.all-MiniLM-L6-v2.sha256.vocab", "07eced", "must be a sha256: 64 hexadecimal digits"),
    # what the recipes have of their own
    ("recipes.nli.train.metric", "spearman_cosine", "Input should be 'accuracy_cosine', 'accuracy_dot', "),
    ("recipes.nli.train.loss", "contrastive", "Input should be 'multiple_negatives', 'cached', 'triplet' or 'softmax'"),
    ("recipes.cola.kind", "embedding", "Input should be 'classification'"),
    ("recipes.cola.prepare.labels", ["yes"], "List should have at least 2 items"),
    ("recipes.cola.prepare.labels", ["yes", "yes"], "names a label twice"),
    ("recipes.emotion.train.class_weights", "even", "Input should be 'none' or 'balanced'"),
    ("recipes.tsdae.prepare.splitter", "(", "not a regular expression: missing ), unterminated subpattern"),
    ("recipes.tsdae.prepare.splitter", "[.]*", "the expression matches the empty text; give what stands between"),
    ("recipes.mlm.prepare.splitter", "[", "not a regular expression: unterminated character set"),
    ("recipes.tsdae.prepare.noise.kind", "drop", "String should match pattern '^(delete|swap|insert|mask)$'"),
    ("recipes.tsdae.prepare.noise.ratio", 1.0, "Input should be less than 1"),
    ("recipes.tsdae.prepare.held_out", 1.0, "Input should be less than 1"),
    ("recipes.mlm.train.mask_ratio", 0.0, "Input should be greater than 0"),
    ("recipes.multilingual.train.metric", "loss", "Input should be 'mean_accuracy' or 'negative_mse'"),
    ("teachers.translations.max_length", 4, "Input should be greater than or equal to 8"),
    # schedules
    ("recipes.sts.schedule", {"timezone": "UTC"}, "needs one of cron and interval"),
    ("recipes.sts.schedule", {"cron": "0 2 * * *", "interval": 9, "timezone": "UTC"}, "needs one of cron and interval"),
    ("recipes.sts.schedule", {"cron": "nightly", "timezone": "UTC"}, "cron has five fields: minute, hour, "),
    ("work_pool", "c pu", "a name has letters, digits, "),
    # upstream stages that nothing makes
    ("recipes.sts.suite", "data/raw/none", "no such stage; known: data/raw/"),
    ("recipes.multilingual.dataset", "data/taught/none", "no such stage; known: data/raw/"),
    ("teachers.translations.dataset", "data/raw/none", "no such stage; known: data/raw/"),
    ("teachers.translations.dataset", "data/taught/translations", "no such stage; known: data/raw/"),
    ("teachers.translations.model", "models/base/none", "no such stage; known: models/base/"),
    ("recipes.sts.base_model", "models/base/none", "no such stage; known: models/base/"),
    ("recipes.sts.base_model", "models/sts", "no such stage; known: models/base/"),
    ("recipes.sts.dataset", "data/raw/none", "no such stage; known: data/raw/"),
])
def test_a_bad_value_is_named_with_its_key_and_the_rule(tmp_path, key, value, rule):
    path = edited(tmp_path, key.replace(".", "/"), value)
    assert refusal(path).startswith(f"{path}: {key} = {value!r}: {rule}")


def test_shares_that_leave_nothing_to_train_and_an_empty_subset_are_refused(tmp_path):
    said = refusal(path := edited(tmp_path, "recipes/sts/prepare/split/dev", 0.8))
    assert said.startswith(f"{path}: recipes.sts.prepare.split = ")
    assert said.endswith(": dev and test together must leave a share to train")
    path = edited(tmp_path, "recipes/emotion/prepare/subset", {"seed": 1, "train": 0, "dev": 1})
    assert refusal(path).startswith(f"{path}: recipes.emotion.prepare.subset.train = 0: Input should be greater than")
    path = edited(tmp_path, "recipes/emotion/prepare/subset", {"seed": 2**32, "train": 1, "dev": 1})
    assert refusal(path).startswith(f"{path}: recipes.emotion.prepare.subset.seed = 4294967296: Input should be less")
    path = edited(tmp_path, "recipes/tsdae/prepare/subset", {"seed": 1, "train": 9, "dev": 5})
    assert refusal(path).endswith("prepare.subset is of labelled rows; for fewer sentences set prepare.limit")


@pytest.mark.parametrize("value", ["../train.csv", ["train.csv", "../more.csv"]])
def test_a_file_outside_the_project_is_named_by_its_split(tmp_path, value):
    said, = refusal(path := edited(tmp_path, "datasets/local/appliances/splits/train", value)).splitlines()
    assert said.startswith(f"{path}: datasets.local.appliances.splits.train")
    assert said.endswith("must be a path inside the project, without '..'") and "[" not in said


@pytest.mark.parametrize("change, rule", [
    ({"url": None}, "one of hub, package or url must say where it comes from"),
    ({"hub": "a/b"}, "hub needs a revision: the commit hash to use"),
    ({"sha256": {}}, "sha256 must give the hash of a.csv: package and url are verified by it"),
    ({"sha256": {"b.csv": SHA}}, "splits names 'a.csv', which is not among files or sha256"),
    ({"files": ["a.csv", "b.csv"]}, "sha256 must give the hash of b.csv"),
])
def test_a_remote_source_that_is_not_pinned_is_refused(tmp_path, change, rule):
    edited(tmp_path, "datasets/remote", {"x": REMOTE})
    params.load(tmp_path / "params.yaml")       # the source itself is fine
    path = edited(tmp_path, "datasets/remote", {"x": REMOTE | change})
    said = refusal(path)
    assert said.startswith(f"{path}: datasets.remote.x") and rule in said


@pytest.mark.parametrize("user", ["me:secret", "secret", ":secret"])
def test_a_url_with_a_user_or_password_is_refused_and_not_repeated(tmp_path, user):
    path = edited(tmp_path, "datasets/remote", {"x": REMOTE | {"url": f"https://{user}@example.org/x"}})
    said = refusal(path)
    assert said.startswith(f"{path}: a url at example.org has a user or password") and "secret" not in said


@pytest.mark.parametrize("name", ["token", "X-Amz-Signature", "sig", "api_key"])
def test_a_url_with_a_secret_in_its_query_is_refused_and_not_repeated(tmp_path, name):
    path = edited(tmp_path, "datasets/remote", {"x": REMOTE | {"url": f"https://example.org/x?part=2&{name}=mine"}})
    said = refusal(path)
    assert said.startswith(f"{path}: a url at example.org has '{name}' in its query") and "mine" not in said
    params.load(edited(tmp_path, "datasets/remote", {"x": REMOTE | {"url": "https://example.org/x?download=1"}}))


def test_a_name_that_stands_in_two_places_is_refused(tmp_path):
    entry = {"path": "samples/moods", "splits": {"train": "train.csv"}, "licence": "none"}
    path = edited(tmp_path, "datasets/local", {"stsb": entry})
    assert refusal(path) == f"{path}: 'stsb' stands under datasets and under published.datasets; keep one"


def test_every_mistake_is_named_at_once(tmp_path):
    path = edited(tmp_path, "recipes/sts/train", {**params.read(OURS)["recipes"]["sts"]["train"],
                                                  "epochs": 0, "patience": 0, "size": 1})
    assert [line.split()[1] for line in refusal(path).splitlines()] == [
        "recipes.sts.train.epochs", "recipes.sts.train.patience", "recipes.sts.train.size"]


def test_an_unknown_recipe_is_answered_with_the_known_ones(tmp_path):
    path = edited(tmp_path, "recipes/stz", params.read(OURS)["recipes"]["sts"])
    said = refusal(path)
    assert said.startswith(f"{path}: recipes.stz has no steps/recipes/stz.py; known recipes: ") and "sts" in said
    with pytest.raises(params.InputError, match=r"^recipe 'stz' is not known; known recipes: .*sts"):
        params.load(OURS).recipe("stz")


@pytest.mark.parametrize("recipes", [GONE, {}, None, ["sts"]])
def test_params_without_recipes_are_refused(tmp_path, recipes):
    assert "recipes must name at least one recipe" in refusal(edited(tmp_path, "recipes", recipes))


@pytest.mark.parametrize("text, number", [("1e-6", 1e-6), ("2.0e-5", 2e-5), ("3E-4", 3e-4), ("1", 1.0)])
def test_scientific_notation_is_a_number(tmp_path, text, number):
    path = tmp_path / "params.yaml"
    changed = re.sub(r"learning_rate: \S+", f"learning_rate: {text}", OURS.read_text(encoding="utf-8"))
    path.write_text(changed, encoding="utf-8")
    assert params.load(path).recipe("sts").train.learning_rate == number


@pytest.mark.parametrize("content, said", [
    (b"seed: [1, 2\n", "is not valid YAML: "),
    (b"seed: 1\nseed: 2\n", 'found duplicate key "seed"'),
    (b"seed: !!python/object/apply:os.getcwd []\n", "is not valid YAML: "),
    (b"- seed\n", "must hold keys and values, not list"),
    (b"", "must hold keys and values, not NoneType"),
    (b"seed: 1\nname: caf\xe9\n", ":2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
])
def test_a_file_that_is_no_mapping_in_yaml_is_refused(tmp_path, content, said):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(str(path)) and said in message


def test_a_missing_file_is_answered_with_the_remedy(tmp_path):
    path = tmp_path / "params.yaml"
    assert refusal(path) == f"{path} is not here; run this in the project's folder"


def test_a_split_that_would_be_read_as_part_of_another_is_refused(tmp_path):
    """data/raw/NAME/test.hard.csv would be the second file of test."""
    splits = {"train": "train.csv", "test.hard": "hard.csv"}
    path = edited(tmp_path, "datasets/local/appliances/splits", splits)
    assert "a split's name has letters, digits, '_' and '-' only" in refusal(path)


@pytest.mark.parametrize("line", ["threads: !!int x", "licence: 2020-99-99"])
def test_a_value_that_its_type_does_not_have_is_refused_as_yaml(tmp_path, line):
    path = tmp_path / "params.yaml"
    path.write_text(line + "\n", encoding="utf-8")
    assert refusal(path).startswith(f"{path} is not valid YAML: ")
