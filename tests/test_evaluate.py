"""The scores agree with the library's evaluator and the files hold every example."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, TripletEvaluator

from steps import embedding, evaluate, params, prepare, statistics, tasks
from steps.recipes import sts
from steps.schema import Evaluate, InputError, Recipe
from tests.conftest import LENIENT
from tests.project import ROOT, sample, write_rows
from tests.small import referred

SIMILARITIES = ("cosine", "dot", "manhattan", "euclidean")
PAIR = ("sentence1", "sentence2")
TRIPLET = ("anchor", "positive", "negative")


def rows(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def ask(raw: Path, base_model: Path, more: dict | None = None, **train) -> Recipe:
    """The sts entry of params.yaml on a data set and a base model, with a quick training."""
    shipped = params.load(ROOT / "params.yaml").recipe("sts")
    values = {"epochs": 1, "learning_rate": 0.001, "precision": "fp32", **train}
    return shipped.model_copy(update={
        "contract": shipped.contract.model_copy(update=LENIENT),
        "dataset": str(raw), "suite": str(raw), "base_model": str(base_model), "tasks": more or {},
        "train": shipped.train.model_copy(update=values),
        "evaluate": Evaluate(batch_size=16, resamples=200, confidence=0.95)})


def trained(asked: Recipe, folder: Path) -> Path:
    """Prepares and trains -> a folder with `data` and `model`."""
    torch.set_num_threads(1)
    prepare.prepare(sts, asked, folder / "data")
    trainer, _ = embedding.build_trainer(sts, asked, 42, folder / "data", Path(asked.base_model), folder / "scratch",
                                         lambda *_: None)
    trainer.train()
    embedding.save(trainer.model, folder / "model")
    return folder


def judge(asked: Recipe, data: Path, model: Path, folder: Path, alone: bool = False) -> dict:
    """steps.evaluate on one thread -> metrics.json."""
    project = params.load(ROOT / "params.yaml").model_copy(update={"threads": 1})
    evaluate.evaluate("sts", asked, project, data, model, folder, alone)
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tiny_model) -> Recipe:
    """48 training, 16 dev and 45 test pairs with their source, and 12 triplets as a further task."""
    raw = tmp_path_factory.mktemp("raw")
    for split, count in (("train", 48), ("dev", 16), ("test", 45)):
        header, *pairs = sample(split, count)
        write_rows(raw / f"{split}.csv", [[*header, "place"], *(
            [*pair, "kitchen" if number % 3 else "hall"] for number, pair in enumerate(pairs))])
    texts = [pair[0] for pair in sample("test", 200)[1:]]
    write_rows(raw / "triplets.csv", [[*TRIPLET], *(texts[start:start + 3] for start in range(0, 36, 3))])
    (raw / "source.json").write_text('{"name": "few"}', encoding="utf-8")
    triplets = tasks.get("triplet").Entry(task="triplet", test="triplets",
                                          columns={name: name for name in TRIPLET})
    asked = ask(raw, tiny_model, {"triplets": triplets})
    columns = asked.prepare.columns.model_copy(update={"source": "place"})
    return asked.model_copy(update={"prepare": asked.prepare.model_copy(update={"columns": columns})})


@pytest.fixture(scope="module")
def made(tmp_path_factory, asked) -> Path:
    """A folder with data, a model and its evaluation `test`."""
    folder = trained(asked, tmp_path_factory.mktemp("made"))
    judge(asked, folder / "data", folder / "model", folder / "test")
    return folder


@pytest.fixture(scope="module")
def metrics(made) -> dict:
    return json.loads((made / "test/metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def predictions(made) -> list[dict]:
    return rows(made / "test/predictions.csv")


@pytest.fixture(scope="module")
def encoders(asked, made) -> dict:
    return {"base": embedding.load(Path(asked.base_model), asked), "model": embedding.load(made / "model", asked)}


# Scores


@pytest.mark.parametrize("who", ["base", "model"])
def test_every_score_is_the_one_of_the_librarys_evaluator(metrics, asked, encoders, who):
    examples = rows(Path(asked.dataset) / "test.csv")
    theirs = EmbeddingSimilarityEvaluator(
        [row["sentence1"] for row in examples], [row["sentence2"] for row in examples],
        [float(row["score"]) for row in examples], similarity_fn_names=list(SIMILARITIES))(encoders[who])
    expected = {f"{kind}_{name}": theirs[f"{kind}_{name}"] for name in SIMILARITIES for kind in ("pearson", "spearman")}
    assert metrics[who] == pytest.approx(expected, abs=1e-5)


def test_predictions_have_a_row_for_each_test_example_in_order(predictions, asked):
    examples = rows(Path(asked.dataset) / "test.csv")
    assert [[row[text] for text in PAIR] for row in predictions] == [[row[text] for text in PAIR] for row in examples]
    assert [5 * float(row["gold"]) for row in predictions] == pytest.approx([float(r["score"]) for r in examples])


@pytest.mark.parametrize("who", ["base", "model"])
def test_a_prediction_is_the_cosine_of_the_pair(predictions, encoders, who):
    first, second = (encoders[who].encode([row[column] for row in predictions], show_progress_bar=False)
                     for column in PAIR)
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert [float(row[who]) for row in predictions] == pytest.approx(cosines, abs=1e-5)


def test_the_deciding_metric_is_the_score_of_both_models_and_their_difference(metrics):
    deciding = metrics["spearman_cosine"]
    assert (metrics["rows"], metrics["metric"]) == (45, "spearman_cosine")
    assert deciding["base"] == metrics["base"]["spearman_cosine"]
    assert deciding["model"] == metrics["model"]["spearman_cosine"]
    assert deciding["gain"] == pytest.approx(deciding["model"] - deciding["base"], abs=2e-6)


def test_intervals_contain_their_values(metrics):
    deciding = metrics["spearman_cosine"]
    for name in ("base", "model", "gain"):
        assert deciding[f"{name}_low"] < deciding[name] < deciding[f"{name}_high"]


SETTINGS = Evaluate(batch_size=1, resamples=100, confidence=0.95)


def test_a_perfect_model_over_a_reversed_base_gains_two_in_every_resample():
    labels = np.arange(30.0)
    found = evaluate.intervals(statistics.spearman, labels, {"base": -labels, "model": labels ** 3}, SETTINGS, 0)
    assert found == {"base": -1.0, "base_low": -1.0, "base_high": -1.0, "model": 1.0, "model_low": 1.0,
                     "model_high": 1.0, "gain": 2.0, "gain_low": 2.0, "gain_high": 2.0}


def test_examples_are_resampled_together_for_both_models():
    """Two equal models gain exactly nothing in every resample, though each alone is uncertain."""
    labels, noisy = np.arange(30.0), np.arange(30.0) % 7
    found = evaluate.intervals(statistics.spearman, labels, {"base": noisy, "model": noisy}, SETTINGS, 0)
    assert (found["gain_low"], found["gain"], found["gain_high"]) == (0.0, 0.0, 0.0)
    assert found["model_low"] < found["model"] < found["model_high"]


# Further tasks


def test_a_further_task_is_judged_by_its_own_metric_as_the_library_does(metrics, asked, encoders):
    found = metrics["tasks"]["triplets"]
    assert (found["rows"], found["metric"]) == (12, "accuracy_cosine")
    triplets = rows(Path(asked.dataset) / "triplets.csv")
    for who, encoder in encoders.items():
        theirs = TripletEvaluator(*([row[text] for row in triplets] for text in TRIPLET))(encoder)
        assert found[who]["accuracy_cosine"] == found["accuracy_cosine"][who] == pytest.approx(
            theirs["cosine_accuracy"], abs=1e-6)


def test_tasks_csv_has_every_example_of_every_further_task(made, metrics, asked):
    lines = rows(made / "test/tasks.csv")
    examples = [json.loads(line["example"]) for line in lines]
    assert {line["task"] for line in lines} == {"triplets"}
    assert [{text: example[text] for text in TRIPLET} for example in examples] == rows(
        Path(asked.dataset) / "triplets.csv")
    right = sum(float(example["model"]) for example in examples)
    assert metrics["tasks"]["triplets"]["model"]["accuracy_cosine"] == pytest.approx(right / 12, abs=1e-6)


def test_a_recipe_without_further_tasks_has_a_table_with_a_header_alone(made, asked, tmp_path):
    found = judge(asked.model_copy(update={"tasks": {}}), made / "data", made / "model", tmp_path / "out")
    assert found["tasks"] == {}
    assert (tmp_path / "out/tasks.csv").read_text(encoding="utf-8") == "task,example\n"


# Slices


@pytest.mark.parametrize("place, count", [("hall", 15), ("kitchen", 30)])
def test_a_slice_of_one_source_is_the_metric_of_its_rows(metrics, predictions, asked, place, count):
    places = [row["place"] for row in rows(Path(asked.dataset) / "test.csv")]
    chosen = [row for row, where in zip(predictions, places, strict=True) if where == place]
    found = metrics["slices"][f"source: {place}"]
    assert found["rows"] == len(chosen) == count
    for who in ("base", "model"):
        gold, said = (np.array([float(row[column]) for row in chosen]) for column in ("gold", who))
        assert found[who] == pytest.approx(statistics.spearman(gold, said), abs=1e-4)
    assert found["gain"] == pytest.approx(found["model"] - found["base"], abs=2e-6)


def test_the_slices_by_length_are_thirds_by_words(metrics, predictions):
    words = sorted(len(row["sentence1"].split()) + len(row["sentence2"].split()) for row in predictions)
    counts = {name: found["rows"] for name, found in metrics["slices"].items() if name.startswith("length: ")}
    assert list(counts) == ["length: short", "length: medium", "length: long"]
    assert sum(counts.values()) == 45
    assert counts["length: short"] == sum(count <= np.quantile(words, 1 / 3) for count in words)
    assert counts["length: long"] == sum(count > np.quantile(words, 2 / 3) for count in words)


# A model of another's


def test_a_reference_is_written_alone(made, asked, metrics, tmp_path, monkeypatch):
    """`--reference` gives the model's own scores as before, and nothing of a base or a gain."""
    monkeypatch.chdir(tmp_path)
    found = referred(asked, "sts", made / "data", made / "model")
    assert "base" not in found and found["model"] == metrics["model"]
    for part, whole in ((found, metrics), (found["tasks"]["triplets"], metrics["tasks"]["triplets"])):
        metric = part["metric"]
        assert part[metric] == {key: value for key, value in whole[metric].items() if key.startswith("model")}
        assert all(not key.startswith(("base", "gain")) for key in part)
    assert list(rows(Path("out/predictions.csv"))[0]) == ["gold", "model", *PAIR]


@pytest.fixture
def constant(made, tmp_path) -> Path:
    """The prepared data with the same label on every row of test."""
    data = shutil.copytree(made / "data", tmp_path / "data")
    with pa.OSFile(str(data / "test.arrow")) as source:
        table = pa.ipc.open_stream(source).read_all()
    table = table.set_column(table.column_names.index("label"), "label", pa.array([0.5] * len(table), pa.float32()))
    with pa.OSFile(str(data / "test.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return data


def test_constant_test_labels_are_refused(constant, made, asked, tmp_path):
    with pytest.raises(InputError, match=r"^(base|model) \w+ on .*test.arrow is not a number: the test labels"):
        judge(asked, constant, made / "model", tmp_path / "out")
    assert not [*(tmp_path / "out").glob("*")]


def test_a_refused_evaluation_leaves_no_folder(constant, made, asked, tmp_path):
    with pytest.raises(InputError):
        judge(asked, constant, made / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
