"""A tokenizer that numbers words otherwise than the model is refused; one that belongs to it is not."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from steps import vocabulary
from steps.provenance import digest
from steps.schema import InputError

WORDS = [f"{a}{b}{c}ing" for a in "bdfgk" for b in "aeiou" for c in "lmnr"]


class Tokenizer:
    def __init__(self, tokens: list[str]):
        self.numbers = {token: number for number, token in enumerate(tokens)}

    def get_vocab(self) -> dict[str, int]:
        return self.numbers


TOKENS = [*WORDS, *(f"{word}s" for word in WORDS)]


@pytest.fixture
def model(tmp_path):
    """A hundred words and their plurals, whose vectors are alike and of many lengths, as training makes them."""
    draw = np.random.default_rng(0)
    single = draw.normal(size=(len(WORDS), 64)) * draw.uniform(0.5, 2.0, (len(WORDS), 1))
    vectors = np.concatenate([single, single + 0.2 * draw.normal(size=single.shape)]).astype(np.float32)
    save_file({"embeddings.word_embeddings.weight": vectors}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("file, content, said", [
    ("tokenizer.json", "{\"version\": ", "cannot be read (JSONDecodeError: "),
    ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n", "cannot be read (JSONDecodeError: "),
    ("tokenizer.json", "{}", "cannot be read (KeyError: "), ("tokenizer_config.json", "{", "cannot be read ("),
    ("tokenizer.json", None, "knows no word; its tokenizer.json is missing: fetch it again")])
def test_a_tokenizer_whose_files_are_not_whole_is_named(tiny_model, tmp_path, file, content, said):
    folder = shutil.copytree(tiny_model, tmp_path / "tiny")
    assert len(vocabulary.tokenizer(folder)) > 100
    (folder / file).write_text(content, encoding="utf-8") if content else (folder / file).unlink()
    with pytest.raises(InputError) as caught:
        vocabulary.tokenizer(folder)
    assert f"{folder}: its tokenizer {said}" in str(caught.value)


def test_the_models_own_tokenizer_passes(model):
    vocabulary.check(model, Tokenizer(TOKENS))


def test_a_tokenizer_of_the_same_size_with_other_numbers_is_refused(model):
    other = Tokenizer(np.random.default_rng(1).permutation(TOKENS).tolist())
    with pytest.raises(InputError, match=r"the tokenizer does not belong to the model: only \d+% of its words"):
        vocabulary.check(model, other)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(model):
    with pytest.raises(InputError, match="numbers tokens up to 200 and the model has vectors for 200"):
        vocabulary.check(model, Tokenizer([*TOKENS, "more"]))


def test_a_model_trained_here_knows_its_tokenizer(model):
    lineage = {"vocabulary_sha256": digest(Tokenizer(TOKENS).get_vocab())}
    (model / "lineage.json").write_text(json.dumps(lineage), encoding="utf-8")
    vocabulary.check(model, Tokenizer(TOKENS))
    swapped = [TOKENS[1], TOKENS[0], *TOKENS[2:]]
    with pytest.raises(InputError, match="its tokenizer is not the one it was trained with; train it again, or put "):
        vocabulary.check(model, Tokenizer(swapped))


def test_random_vectors_say_nothing(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(len(TOKENS), 64)).astype(np.float32)
    save_file({"embeddings.word_embeddings.weight": vectors}, tmp_path / "model.safetensors")
    vocabulary.check(tmp_path, Tokenizer(TOKENS[::-1]))


@pytest.mark.parametrize("kind, tensor, most", [
    ("bert", "embeddings.position_embeddings.weight", 20), ("gpt", "position_embeddings.weight", 20),
    ("xlm-roberta", "roberta.embeddings.position_embeddings.weight", 18),
    ("mpnet", "embeddings.position_embeddings.weight", 18),
    ("layoutlm", "embeddings.x_position_embeddings.weight", None),
    ("modernbert", "embeddings.tok_embeddings.weight", None)])
def test_a_model_takes_as_many_tokens_as_its_table_has_positions_behind_the_padding(tmp_path, kind, tensor, most):
    save_file({tensor: np.zeros((20, 4), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "pad_token_id": 1}), encoding="utf-8")
    assert vocabulary.positions(tmp_path) == most


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta", "Camembert", "MPNet", "DistilBert", "Electra"])
def test_the_longest_text_that_is_allowed_is_the_longest_that_the_model_computes(tmp_path, kind):
    import torch
    import transformers

    small = {"n_layers": 1, "n_heads": 2, "dim": 8, "hidden_dim": 8} if kind == "DistilBert" else {
        "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8}
    made = getattr(transformers, f"{kind}Config")(vocab_size=30, max_position_embeddings=20, **small)
    model = getattr(transformers, f"{kind}Model")(made).eval()
    model.save_pretrained(tmp_path)
    most = vocabulary.positions(tmp_path)
    model(input_ids=torch.full((1, most), 7), attention_mask=torch.ones(1, most, dtype=torch.int64))
    with pytest.raises((RuntimeError, IndexError)):
        model(input_ids=torch.full((1, most + 1), 7), attention_mask=torch.ones(1, most + 1, dtype=torch.int64))


def test_a_file_that_is_no_safetensors_is_named(model):
    (model / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"model.safetensors is no whole safetensors model: .*git lfs pull"):
        vocabulary.check(model, Tokenizer(TOKENS))
