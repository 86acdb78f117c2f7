"""What `evergreen predict` says of texts: the similarity of two under an encoder, the class of each by a classifier."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from steps import classification, model_files, params, predict, provenance, registry, tracking
from tests.project import ROOT, Project

PAIR = ["Water drips from the indoor unit.", "There is a puddle under the air conditioner."]
LABELS = ["sadness", "joy", "love", "anger", "fear", "surprise"]


def vectors_by_hand(folder: Path, texts: list[str]) -> np.ndarray:
    """Mean pooling over the last hidden states of the trained BERT, one text at a time."""
    tokenizer, bert = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        return np.stack([bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
                         for text in texts])


# An encoder


def test_two_texts_have_the_cosine_of_their_vectors(finished):
    first, second = vectors_by_hand(finished / "models/sts", PAIR)
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    done = finished.evergreen("predict", "sts", *PAIR)
    assert done.stdout == f"{cosine:.4f}  cosine similarity under sts@1 (challenger)\n"


@pytest.mark.parametrize("name", ["sts", "sts@1", "sts@challenger"])
def test_a_model_is_named_by_recipe_version_or_alias(inside, finished, evergreen, name):
    inside(finished)
    assert evergreen("predict", name, "a text", "a text").out == "1.0000  cosine similarity under sts@1 (challenger)\n"


@pytest.mark.parametrize(("name", "message"), [
    ("nothing", "no model 'nothing' is registered; registered: sts. Make one: evergreen run nothing"),
    ("sts@7", "'sts' has no version or alias '7'; versions: [1], aliases: {'challenger': 1}"),
    ("sts@best", "'sts' has no version or alias 'best'; versions: [1], aliases: {'challenger': 1}")])
def test_an_unknown_model_version_or_alias_is_named_with_the_known_ones(inside, finished, evergreen, name, message):
    inside(finished)
    done = evergreen("predict", name, "a text", "another")
    assert (done.code, done.out, done.err) == (2, "", f"error: {message}\n")


def test_an_empty_text_is_refused(inside, finished, evergreen):
    inside(finished)
    done = evergreen("predict", "sts", "a text", "  ")
    assert (done.code, done.out, done.err) == (2, "", "error: '  ' is an empty text\n")


def test_half_a_surrogate_pair_is_refused(inside, finished, evergreen):
    inside(finished)
    done = evergreen("predict", "sts", "a text", "half \ud83d")
    assert (done.code, done.out, done.err) == (2, "", "error: 'half \\ud83d' has half a surrogate pair, which is no "
                                                      "character; write the whole character\n")


@pytest.mark.parametrize("texts", [["one"], ["one", "two", "three"]])
def test_an_encoder_compares_two_texts(inside, finished, evergreen, texts):
    inside(finished)
    done = evergreen("predict", "sts", *texts)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: sts@1 (challenger) compares two texts; {len(texts)} given\n"


# A classifier


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny_model, environment) -> Project:
    """A project in whose store a classifier of six classes is registered, untrained, with no alias."""
    project = Project(tmp_path_factory.mktemp("classifier"), environment)
    shipped = params.load(ROOT / "params.yaml").recipe("emotion")
    torch.manual_seed(0)
    classification.save(classification.load(tiny_model, shipped, new_head=True), project / "emotion")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(project.folder)
        for key in ("MLFLOW_TRACKING_URI", "EVERGREEN_TRACKING"):
            here.setenv(key, "")
        (project / "params.yaml").touch()
        found = tracking.client()
        run = found.create_run(tracking.experiment(found, "emotion"))
        tags = {"weights_sha256": provenance.sha256(project / "emotion/model.safetensors")}
        found.set_terminated(run.info.run_id, "FINISHED")
        registry.register(found, "emotion", "classification", run.info.run_id, project / "emotion", PAIR, tags, "")
    return project


def class_by_hand(folder: Path, text: str) -> tuple[str, float]:
    """The most probable class of a text cut at the tiny model's 128 positions."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        chances = model(**{k: v[:, :128] for k, v in tokens.items()}).logits[0].softmax(0)
    return LABELS[int(chances.argmax())], float(chances.max())


def test_each_text_has_its_most_probable_class_and_its_probability(inside, classifier, evergreen):
    inside(classifier)
    texts = [*PAIR, "It's cold, says she."]
    lines = []
    for text in texts:
        label, chance = class_by_hand(classifier / "emotion", text)
        lines.append(f"{chance:.4f}  {label}  {text!r} under emotion@1")
    done = evergreen("predict", "emotion@1", *texts)
    assert (done.code, done.out.splitlines()) == (0, lines)


def test_a_text_longer_than_the_model_is_cut(inside, classifier, evergreen):
    inside(classifier)
    done = evergreen("predict", "emotion@1", "water " * 1000)
    assert (done.code, done.err) == (0, "")
    assert 1 / 6 < float(done.out.split()[0]) < 1


def test_a_classifier_gives_no_vectors(inside, classifier, evergreen, tmp_path):
    inside(classifier)
    (tmp_path / "texts.txt").write_text("one\n", encoding="utf-8")
    done = evergreen("embed", "emotion@1", tmp_path / "texts.txt", tmp_path / "out.npy")
    assert (done.code, done.out) == (2, "")
    assert done.err == ("error: emotion@1 gives classes, not vectors; use it with: "
                        "evergreen predict emotion@1 TEXT\n")
    assert [p.name for p in tmp_path.iterdir()] == ["texts.txt"]


def test_a_stored_classifier_is_safetensors_and_no_pickle(inside, classifier):
    inside(classifier)
    tracking.client()
    stored = [p for p in model_files.stored("models:/emotion/1").rglob("*") if p.is_file()]
    assert [p.parent.name for p in stored if p.suffix == ".safetensors"] == ["model"]
    assert {p.suffix for p in stored} <= {".safetensors", ".json", ".txt", ".yaml", ".md", ""}
    for path in (p for p in stored if p.suffix != ".safetensors"):
        path.read_text(encoding="utf-8")


def test_mlflow_loads_the_classifier_and_it_says_the_same(inside, classifier):
    import mlflow

    inside(classifier)
    tracking.client()
    found, = mlflow.transformers.load_model("models:/emotion/1")(PAIR[0])
    label, chance = class_by_hand(classifier / "emotion", PAIR[0])
    assert (found["label"], found["score"]) == (label, pytest.approx(chance, abs=1e-6))


def test_a_text_longer_than_an_mpnet_is_cut(classifier, tmp_path):
    from transformers import MPNetConfig, MPNetForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(classifier / "emotion")
    MPNetForSequenceClassification(MPNetConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=514)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "components/tokenizer")
    (_, chance), = predict.classes(tmp_path, ["water " * 1000])
    assert 0.5 <= chance < 1
