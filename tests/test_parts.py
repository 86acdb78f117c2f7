"""A batch that is computed in parts has the loss and the gradient of one that is computed at once."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steps import batching, classification, embedding, prepare, recipes
from tests.small import changed


@pytest.fixture
def ready(small):
    """ready("mlm", ...) -> the recipe, with what prepare makes of a few rows; plain text is cut into sentences."""
    def make(recipe: str, **train):
        settings = small(recipe, **train)
        if recipe in ("mlm", "tsdae"):
            sentences = settings.prepare.model_copy(update={"splitter": r"[.\n]+"})
            settings = settings.model_copy(update={"prepare": sentences})
        prepare.prepare(recipes.get(recipe), settings, Path("data"))
        return settings
    return make


def trainer(recipe: str, settings, parts: int = 1):
    """One of batches of 7 rows, without dropout."""
    kind = classification if recipe == "emotion" else embedding
    found, _ = kind.build_trainer(recipes.get(recipe), changed(settings, batch_size=7), 42, Path("data"),
                                  Path(settings.base_model), Path("scratch"), lambda *_: None, parts)
    for module in found.trained().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found.current_gradient_accumulation_steps = 1
    found.create_optimizer()
    return found


def gradient(recipe: str, settings, parts: int) -> tuple[torch.Tensor, int]:
    """That of the first batch whose rows do not count alike, and how many tokens the encoder saw with their padding."""
    found, tokens = trainer(recipe, settings, parts), 0
    batch = next(batch for batch in found.get_train_dataloader() if recipe == "sts" or (
        found.counts({name: value[:4] for name, value in batch.items()}) / 4
        != pytest.approx(found.counts(batch) / 7)))

    def count(module, ids):
        nonlocal tokens
        tokens += ids[0].numel()

    encoder = found.model if recipe == "emotion" else found.model.transformers_model
    encoder.get_input_embeddings().register_forward_pre_hook(count)
    found.training_step(found.model, batch)
    return torch.cat([p.grad.flatten() for p in found.model.parameters() if p.grad is not None]), tokens


@pytest.mark.parametrize("recipe, settings", [
    ("sts", {}), ("mlm", {"split_saving": None}), ("tsdae", {"split_saving": None}),
    ("emotion", {"class_weights": "balanced"})])
def test_the_gradient_of_a_batch_in_parts_is_that_of_the_batch(ready, recipe, settings):
    """7 rows in 4 and 3, which do not count 4 to 3 where a loss is a mean over tokens or weighs the classes."""
    settings = ready(recipe, **settings)
    (whole, _), (parts, _) = gradient(recipe, settings, 1), gradient(recipe, settings, 2)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert whole.abs().max() > 1e-3


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes a batch whole")
@pytest.mark.parametrize("recipe", ["mlm", "tsdae"])
def test_parts_of_similar_length_pad_less_and_leave_the_gradient_as_it_is(ready, recipe):
    """Also where memory is too small for the batch: parts of 4 and 3 rows are cut again."""
    settings = ready(recipe, split_saving=None)
    whole, padded = gradient(recipe, settings, 1)
    for parts in (1, 2):
        same, less = gradient(recipe, changed(settings, split_saving=1), parts)
        assert torch.allclose(whole, same, atol=1e-6)
        assert less < padded
    assert whole.abs().max() > 1e-3


@pytest.mark.parametrize("recipe", ["mlm", "tsdae"])
def test_they_leave_the_loss_on_held_out_text_as_it_is(ready, recipe):
    settings, losses = ready(recipe, split_saving=None), []
    for saving in (None, 1):
        found = trainer(recipe, changed(settings, split_saving=saving))
        found.remove_callback(found.history)        # whose clock starts with training
        losses.append(found.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] > 1


@pytest.mark.parametrize("precision, kind", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("recipe", ["mlm", "tsdae"])
def test_what_guesses_words_computes_in_the_precision_of_training(ready, recipe, precision, kind):
    """The loss itself is a number of 32 bits."""
    found, kinds = trainer(recipe, ready(recipe, precision=precision)), set()
    words = found.loss.head if recipe == "mlm" else found.loss.decoder
    words.get_output_embeddings().register_forward_hook(lambda module, vectors, scores: kinds.add(scores.dtype))
    loss = found.training_step(found.model, next(iter(found.get_train_dataloader())))
    assert kinds == {kind} and loss.dtype == torch.float32


def test_similarities_of_vectors_stay_in_32_bits(ready):
    """A loss without layers of its own sees nothing but small differences between the encoder's vectors."""
    assert not trainer("nli", ready("nli", precision="bf16")).has_layers


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 60))
def test_a_batch_is_cut_where_that_spares_most(lengths, saving):
    """Of all ways to cut it."""
    def cost(parts: list[tuple[int, int]]) -> int:
        return sum((end - start) * max(lengths[start:end]) + saving for start, end in parts)

    ways = ([0, *inner, len(lengths)] for count in range(len(lengths))
            for inner in itertools.combinations(range(1, len(lengths)), count))
    found = batching.cuts(np.array(lengths), saving)
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])] and found[-1][1] == len(lengths)
    assert cost(found) == min(cost(list(itertools.pairwise(way))) for way in ways)
