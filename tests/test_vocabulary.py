"""A tokenizer that numbers words otherwise than the model is refused; one that belongs to it is not."""

import json

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
