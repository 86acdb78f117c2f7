"""Training and embedding with a real tiny encoder: the same bits, the best epoch, no tokenizer, no leftovers."""

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from steps import batching, embedding, params, prepare, progress
from steps import train as step
from steps.provenance import digest, sha256
from steps.recipes import sts
from steps.schema import InputError, Recipe
from tests.project import ROOT, sample, write_rows
from tests.small import changed


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tiny_model) -> Recipe:
    """The sts entry of params.yaml with a tiny model, few rows and a training of one quick epoch."""
    raw = tmp_path_factory.mktemp("raw")
    for split, count in (("train", 48), ("dev", 16), ("test", 16)):
        write_rows(raw / f"{split}.csv", sample(split, count))
    (raw / "source.json").write_text('{"name": "few"}', encoding="utf-8")
    shipped = params.load(ROOT / "params.yaml").recipe("sts")
    train = shipped.train.model_copy(update={"epochs": 1, "learning_rate": 0.001, "precision": "fp32"})
    return shipped.model_copy(update={"dataset": str(raw), "suite": str(raw), "base_model": str(tiny_model),
                                      "train": train})


@pytest.fixture(scope="module")
def data(tmp_path_factory, asked) -> Path:
    """48 training and 16 dev and test pairs, tokenized by the real step."""
    folder = tmp_path_factory.mktemp("prepared") / "sts"
    prepare.prepare(sts, asked, folder)
    return folder


@pytest.fixture
def train(asked, data, tiny_model, tmp_path):
    """train(epochs=3, ...) -> the encoder and its history, on one thread."""
    def run(of=sts, seed=42, log=lambda metrics, step: None, **settings):
        torch.set_num_threads(1)
        trainer, history = embedding.build_trainer(of, changed(asked, **settings), seed, data, tiny_model,
                                                   tmp_path / "scratch", log)
        trainer.train()
        return trainer.model, history
    return run


@pytest.fixture
def train_step(asked, tmp_path, monkeypatch):
    """train_step(data, ...) runs steps.train without a store; it writes tmp_path/model and tmp_path/curves."""
    for lock in step.provenance.LOCKS:
        shutil.copy(ROOT / lock, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERGREEN_TRACKING", "none")

    def run(data: Path, **settings):
        project = params.load(ROOT / "params.yaml").model_copy(update={"threads": 1})
        step.train("sts", changed(asked, **settings), project, data, tmp_path / "model", tmp_path / "curves")
    return run


def with_labels(data: Path, folder: Path, split: str, label: float) -> Path:
    """A copy of prepared data in which every label of a split is `label`."""
    shutil.copytree(data, folder)
    with pa.OSFile(str(data / f"{split}.arrow")) as source:
        table = pa.ipc.open_stream(source).read_all()
    labels = pa.array([label] * len(table), pa.float32())
    table = table.set_column(table.column_names.index("label"), "label", labels)
    with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def scripted(scores: list[float]):
    """The sts recipe with the given dev scores, before training and after each epoch; `seen` are the vectors."""
    seen = []

    def score(embeddings, labels):
        seen.append(embeddings[0].copy())
        return {"spearman_cosine": scores[len(seen) - 1]}
    task = SimpleNamespace(TEXTS=sts.TASK.TEXTS, scores=score)
    return SimpleNamespace(TASK=task, METRIC=sts.METRIC, loss=sts.loss, seen=seen)


def test_equal_seeds_give_equal_weights_and_another_seed_gives_others(train, tmp_path):
    hashes = []
    for number, seed in enumerate((42, 42, 7)):
        embedding.save(train(seed=seed)[0], tmp_path / str(number))
        hashes.append(sha256(tmp_path / str(number) / "model.safetensors"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_training_without_mlflow_prefect_and_dvc_leaves_the_same_bytes(finished, tmp_path):
    """Nor does the hub's offline switch, off here and on there, show in a saved file."""
    code = ("import sys\n"
            "sys.modules.update(dict.fromkeys(('mlflow', 'prefect', 'dvc')))\n"
            "from steps import train\n"
            f"train.main(['sts', 'data/prepared/sts', {str(tmp_path / 'model')!r}, {str(tmp_path / 'curves')!r}])")
    finished.run(sys.executable, "-c", code)
    assert files(tmp_path / "model") == files(finished / "models/sts")
    assert files(tmp_path / "curves") == files(finished / "evaluation/sts/training")


def test_the_best_epoch_on_dev_is_kept_not_the_last(train, data):
    recipe = scripted([0.1, 0.2, 0.9, 0.3])
    model, history = train(of=recipe, epochs=3, patience=3, learning_rate=0.01)
    assert [row["dev_spearman_cosine"] for row in history.epochs] == [0.1, 0.2, 0.9, 0.3]
    kept = embedding.embed(model, batching.load(data / "dev.arrow")["sentence1_input_ids"][:], 64)
    assert np.allclose(kept, recipe.seen[2], atol=1e-6)
    assert not np.allclose(kept, recipe.seen[3], atol=1e-3)


def test_the_saved_model_scores_on_dev_what_the_history_says_of_its_best_epoch(train, asked, data, tmp_path):
    model, history = train(epochs=4, learning_rate=0.01, patience=4)
    embedding.save(model, tmp_path / "model")
    texts = batching.texts(data / "dev.arrow", sts.TASK.TEXTS)
    vectors = embedding.outputs(embedding.load(tmp_path / "model", asked), [*texts.values()], 64)
    score = sts.TASK.scores(vectors, batching.labels(batching.load(data / "dev.arrow")))["spearman_cosine"]
    assert score == pytest.approx(max(row["dev_spearman_cosine"] for row in history.epochs[1:]), abs=1e-6)


def test_training_stops_after_the_epochs_of_patience(train):
    history = train(of=scripted([0.1, 0.9, 0.5, 0.8, 1.0]), epochs=20, patience=2)[1]
    assert [row["epoch"] for row in history.epochs] == [0, 1, 2, 3]


def test_the_curves_are_logged_by_step_as_they_come(train):
    logged = []
    history = train(epochs=2, log=lambda metrics, step: logged.append((step, *metrics)))[1]
    dev = ("dev_loss", "dev_spearman_cosine")
    curve = ("train_loss", "learning_rate")
    assert logged == [(0, *dev), (1, *curve), (2, *curve), (3, *curve), (3, *dev),
                      (4, *curve), (5, *curve), (6, *curve), (6, *dev)]
    first = [row["loss"] for row in history.loss[:3]]
    assert history.epochs[1]["train_loss"] == pytest.approx(sum(first) / 3)


def test_a_long_training_that_stops_early_has_a_loss_in_every_epoch(train):
    """A curve of a hundred points would have its first one at step 27, after the stop at step 9."""
    history = train(of=scripted([0.1, 0.9, 0.5, 0.5]), epochs=900, patience=2)[1]
    assert [math.isfinite(row["train_loss"]) for row in history.epochs[1:]] == [True, True, True]


def test_a_loss_that_explodes_stops_naming_the_step_and_leaves_no_model(train_step, data, tmp_path):
    with pytest.raises(InputError, match=r"^the (loss|gradient's norm) is (nan|inf) at step [23], in rows \d+, "):
        train_step(data, learning_rate=1e30)
    assert not list(tmp_path.glob("*model*")) and not (tmp_path / "curves").exists()


def test_training_labels_that_are_not_numbers_stop_at_the_first_step(train_step, data, tmp_path):
    with pytest.raises(InputError, match=r"^the loss is nan at step 1, in rows .* look at these rows"):
        train_step(with_labels(data, tmp_path / "data", "train", math.nan))
    assert not list(tmp_path.glob("*model*")) and not (tmp_path / "curves").exists()


def test_constant_dev_labels_are_refused(train_step, data, tmp_path):
    with pytest.raises(InputError, match=r"^dev spearman_cosine is nan: .* dev labels are constant"):
        train_step(with_labels(data, tmp_path / "data", "dev", 0.5))
    assert not (tmp_path / "model").exists()


def test_a_model_is_saved_as_the_same_bytes_wherever_it_is(train, tmp_path):
    model = train()[0]
    embedding.save(model, tmp_path / "one")
    (tmp_path / "deeper").mkdir()
    embedding.save(model, tmp_path / "deeper/two")
    saved = files(tmp_path / "one")
    assert saved == files(tmp_path / "deeper/two")
    assert {"model.safetensors", "modules.json", "tokenizer.json", "1_Pooling/config.json"} <= set(saved)


def test_a_saved_model_holds_no_path_clock_or_pickle(train, tiny_model, tmp_path):
    embedding.save(train()[0], tmp_path / "model")
    saved = files(tmp_path / "model")
    assert {Path(name).suffix for name in saved} <= {".safetensors", ".json", ".txt"}
    for name, content in saved.items():
        for trace in (tiny_model, tmp_path, Path.home(), ROOT):
            assert str(trace).encode() not in content, name
    assert not {"README.md", "training_args.bin", "trainer_state.json"} & set(saved)


def test_the_step_leaves_a_model_that_names_its_parents_two_curves_and_no_checkpoint(train_step, asked, data, tmp_path):
    train_step(data)
    lineage = json.loads((tmp_path / "model/lineage.json").read_text(encoding="utf-8"))
    vocabulary = AutoTokenizer.from_pretrained(asked.base_model).get_vocab()
    assert lineage == {"recipe": "sts", "base_model": {}, "dataset": {"name": "few"},
                       "vocabulary_sha256": digest(vocabulary)}
    assert sorted(files(tmp_path / "curves")) == ["epochs.csv", "loss.csv"]
    assert not [*tmp_path.rglob("checkpoint-*")]


def test_a_model_trained_from_a_trained_one_names_it(train_step, asked, data, tmp_path):
    train_step(data)
    assert step.parent(tmp_path / "model") == {
        **json.loads((tmp_path / "model/lineage.json").read_text(encoding="utf-8")),
        "weights_sha256": sha256(tmp_path / "model/model.safetensors")}


def test_vectors_equal_those_of_the_library_in_the_original_order(tiny_model):
    texts = ["filter", "The air conditioner runs but the air is not cold and it is loud.", "a", "Water drips."] * 3
    model = embedding.encoder(tiny_model, 128, "mean")
    tokens = [model.tokenizer(text)["input_ids"] for text in texts]
    assert np.allclose(embedding.embed(model, tokens, 5), model.encode(texts, show_progress_bar=False), atol=1e-5)


def test_texts_are_cut_where_the_library_cuts_them(tiny_model):
    texts = [["The air is not cold. " * 20, "filter"], ["a", "It is loud. " * 30]]
    model = embedding.encoder(tiny_model, 16, "mean")
    for column, found in zip(texts, embedding.outputs(model, texts, 1), strict=True):
        assert np.allclose(found, model.encode(column, show_progress_bar=False), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_plain_bert_gets_the_pooling_named(tiny_model, pooling):
    tokens = AutoTokenizer.from_pretrained(tiny_model)("Water drips from the indoor unit.", return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(tiny_model)(**tokens).last_hidden_state[0]
    by_hand = {"mean": states.mean(0), "cls": states[0], "max": states.max(0).values}[pooling]
    found = embedding.embed(embedding.encoder(tiny_model, 128, pooling), tokens["input_ids"].tolist(), 1)
    assert np.allclose(found[0], by_hand, atol=1e-5)


def test_the_pooling_named_takes_the_place_of_the_base_models_own(tiny_model, asked, data, tmp_path):
    """What is trained pools as the recipe says; what the base model is compared with stays as it was."""
    base = tmp_path / "base"
    embedding.save(embedding.encoder(tiny_model, 128, "mean"), base)
    modes = {}
    for pooling in (None, "mean", "cls"):
        settings = changed(asked, pooling=pooling)
        modes[pooling] = [model[1].pooling_mode for model in (
            embedding.build_trainer(sts, settings, 42, data, base, tmp_path / "scratch", lambda *_: None)[0].model,
            embedding.load(base, settings))]
    assert modes == {None: ["mean", "mean"], "mean": ["mean", "mean"], "cls": ["cls", "mean"]}


def test_a_pooling_for_an_encoder_that_has_none_is_refused(tiny_model):
    model = embedding.encoder(tiny_model, 128, None)
    del model[1]
    with pytest.raises(InputError, match=r"train.pooling is cls, and the base model's vectors are not pooled"):
        embedding.pool(model, "cls")


def test_a_folder_without_safetensors_is_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(InputError, match=r"old has no model.safetensors; other formats of weights are not loaded"):
        embedding.encoder(folder, 128, "mean")


def test_progress_is_printed_with_the_time_left(train, monkeypatch, capsys):
    monkeypatch.setattr(progress, "HEARTBEAT", 0)
    train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training ")]
    assert [line.partition(",")[0] for line in lines] == [
        "training 1/3 steps (33%)", "training 2/3 steps (67%)", "training 3/3 steps (100%)"]
    assert lines[-1] == "training 3/3 steps (100%), 0 s left"


def test_nothing_is_tokenized_while_training(train, tiny_model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a text was tokenized")
    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", refuse)
    model = train()[0]
    with pytest.raises(AssertionError, match="a text was tokenized"):
        model.encode(["the trap works"])
