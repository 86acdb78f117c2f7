"""Noise: what each kind may do to a sentence, how often it does it, and that nothing but the row decides it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps import noise
from steps.noise import MASKED

MASK_ID = 999
UNTOUCHED = -100
SEEDS = st.integers(0, 2**32)
EPOCHS = st.integers(0, 50)
RATIOS = st.floats(0.01, 0.99)
NUMBERS = st.integers(-10**9, 10**9)
SENTENCES = st.lists(st.tuples(NUMBERS, st.integers(1, 12)), min_size=1, max_size=20, unique_by=lambda s: s[0])


def arrays(sentences: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """[(row, words)] -> the numbers of the rows and of their words."""
    rows, counts = zip(*sentences, strict=True)
    return np.array(rows), np.array(counts)


def noised(kind: str, ratio: float, sentences: list[tuple[int, int]], seed: int = 0, epoch: int = 0) -> list[list[int]]:
    """What is left of each sentence, as places within it."""
    rows, counts = arrays(sentences)
    index, left = noise.words(kind, ratio, seed, epoch, rows, counts)
    assert len(left) == len(counts) and left.sum() == len(index)
    parts = np.split(index, np.cumsum(left)[:-1])
    starts = np.cumsum(counts) - counts
    return [np.where(part == MASKED, MASKED, part - start).tolist() for part, start in zip(parts, starts, strict=True)]


def many(rows: int, words: int) -> list[tuple[int, int]]:
    return [(row, words) for row in range(rows)]


def near(share: float, wanted: float, draws: int) -> bool:
    """Whether a share lies within five standard deviations of the binomial."""
    return abs(share - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / draws)


def is_subsequence(short: list, long: list) -> bool:
    rest = iter(long)
    return all(word in rest for word in short)


# How often


@pytest.mark.parametrize("epoch", range(3))
def test_a_ratio_of_sixty_percent_deletes_sixty_percent_and_keeps_forty(epoch):
    left = sum(map(len, noised("delete", 0.6, many(2000, 50), epoch=epoch)))
    assert near(1 - left / 100_000, 0.6, 100_000)


def test_mask_hides_its_ratio_of_the_words():
    hidden = sum(sentence.count(MASKED) for sentence in noised("mask", 0.3, many(2000, 50)))
    assert near(hidden / 100_000, 0.3, 100_000)


def test_insert_adds_its_ratio_of_words():
    added = sum(map(len, noised("insert", 0.3, many(2000, 50)))) - 100_000
    assert near(added / 100_000, 0.3, 100_000)


def test_swap_moves_nearly_its_ratio_of_the_words():
    """Of the k words drawn in a sentence one stays where it was on average, whatever k: 15 - 1 of 50."""
    moved = sum(place != word for sentence in noised("swap", 0.3, many(2000, 50))
                for place, word in enumerate(sentence))
    assert 0.27 < moved / 100_000 < 0.29


def test_where_all_words_would_go_each_is_as_likely_to_stay():
    left = noised("delete", 0.9999, many(5000, 5))
    alone = [sentence[0] for sentence in left if len(sentence) == 1]
    assert len(alone) > 4900
    assert all(near(alone.count(place) / len(alone), 0.2, len(alone)) for place in range(5))


def test_each_place_of_a_sentence_is_as_likely_to_be_copied():
    """Behind word 0 of 5 comes a copy of any of the five."""
    copies = [sentence[1] for sentence in noised("insert", 0.9999, many(5000, 5)) if len(sentence) == 10]
    assert all(near(copies.count(place) / len(copies), 0.2, len(copies)) for place in range(5))


# What may happen to a sentence


@settings(deadline=None)
@given(RATIOS, SENTENCES, SEEDS, EPOCHS)
def test_deletion_keeps_at_least_one_word_and_their_order_and_invents_none(ratio, sentences, seed, epoch):
    for left, (_, count) in zip(noised("delete", ratio, sentences, seed, epoch), sentences, strict=True):
        assert left and set(left) <= set(range(count))
        assert all(before < after for before, after in pairwise(left))


@settings(deadline=None)
@given(RATIOS, SENTENCES, SEEDS, EPOCHS)
def test_swapping_keeps_every_word_and_the_places_that_were_not_drawn(ratio, sentences, seed, epoch):
    rows, counts = arrays(sentences)
    sentence = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(count) for count in counts])
    drawn = noise.uniform(seed, epoch, 0, rows, sentence, place) < ratio
    found = noised("swap", ratio, sentences, seed, epoch)
    assert [sorted(words) for words in found] == [list(range(count)) for count in counts]
    stayed = np.concatenate([np.array(words) for words in found]) == place
    assert stayed[~drawn].all()


@settings(deadline=None)
@given(RATIOS, SENTENCES, SEEDS, EPOCHS)
def test_inserting_keeps_the_sentence_in_its_order_and_adds_its_own_words(ratio, sentences, seed, epoch):
    for words, (_, count) in zip(noised("insert", ratio, sentences, seed, epoch), sentences, strict=True):
        assert is_subsequence(list(range(count)), words)
        assert set(words) == set(range(count)) and count <= len(words) <= 2 * count


@settings(deadline=None)
@given(RATIOS, SENTENCES, SEEDS, EPOCHS)
def test_masking_keeps_the_length_and_leaves_at_least_one_word(ratio, sentences, seed, epoch):
    for words, (_, count) in zip(noised("mask", ratio, sentences, seed, epoch), sentences, strict=True):
        assert len(words) == count and set(words) != {MASKED}
        assert all(word in (place, MASKED) for place, word in enumerate(words))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no such kind of noise: 'shuffle'"):
        noised("shuffle", 0.5, many(1, 3))


# Of nothing but seed, epoch and row


@settings(deadline=None)
@given(st.sampled_from(noise.KINDS), RATIOS, SENTENCES, SEEDS, EPOCHS, st.randoms(use_true_random=False))
def test_a_row_has_the_same_noise_in_any_order_and_in_any_batch(kind, ratio, sentences, seed, epoch, random):
    whole = dict(zip(sentences, noised(kind, ratio, sentences, seed, epoch), strict=True))
    shuffled = random.sample(sentences, len(sentences))
    assert dict(zip(shuffled, noised(kind, ratio, shuffled, seed, epoch), strict=True)) == whole
    for sentence in sentences:
        assert noised(kind, ratio, [sentence], seed, epoch) == [whole[sentence]]


@settings(deadline=None)
@given(SENTENCES, SEEDS, EPOCHS, st.randoms(use_true_random=False))
def test_a_row_has_the_same_masked_tokens_in_any_order_and_in_any_batch(sentences, seed, epoch, random):
    def masked(chosen: list[tuple[int, int]]) -> dict:
        rows, counts = arrays(chosen)
        found = noise.mask_tokens(np.full(counts.sum(), 7), 0.5, seed, epoch, rows, counts, MASK_ID, np.arange(100))
        cuts = np.cumsum(counts)[:-1]
        inputs, targets = ([part.tolist() for part in np.split(x, cuts)] for x in found)
        return dict(zip(chosen, zip(inputs, targets, strict=True), strict=True))

    whole = masked(sentences)
    assert masked(random.sample(sentences, len(sentences))) == whole
    assert {k: v for sentence in sentences for k, v in masked([sentence]).items()} == whole


@pytest.mark.parametrize("kind", noise.KINDS)
def test_another_epoch_another_seed_and_another_row_have_other_noise(kind):
    first = noised(kind, 0.5, [(0, 30)], seed=0, epoch=0)
    assert noised(kind, 0.5, [(0, 30)], seed=0, epoch=1) != first
    assert noised(kind, 0.5, [(0, 30)], seed=1, epoch=0) != first
    assert noised(kind, 0.5, [(1, 30)], seed=0, epoch=0) != first
    assert noised(kind, 0.5, [(-1, 30)], seed=0, epoch=0) != first


@settings(deadline=None)
@given(SEEDS, EPOCHS, st.integers(0, 4), NUMBERS, st.integers(0, 500))
def test_a_draw_is_splitmix64_in_whole_numbers(seed, epoch, stream, row, place):
    """The same arithmetic without NumPy, as any language could do it."""
    whole, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & whole
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & whole
        return x ^ (x >> 31)

    key = 0
    for part in (seed, epoch, stream):
        key = mix(key + golden + part & whole)
    state = mix(key + golden * row & whole)
    expected = (mix(state + golden * (place + 1) & whole) >> 11) / 2**53
    assert noise.uniform(seed, epoch, stream, np.array([row]), np.array([0]), np.array([place]))[0] == expected


def test_draws_are_uniform_and_those_of_other_streams_tell_nothing_of_them():
    rows, sentence, place = np.arange(1000), np.repeat(np.arange(1000), 100), np.tile(np.arange(100), 1000)
    draws = [noise.uniform(42, 0, stream, rows, sentence, place) for stream in range(5)]
    for found in draws:
        assert found.min() >= 0 and found.max() < 1
        shares = np.histogram(found, bins=10, range=(0, 1))[0] / len(found)
        assert all(near(share, 0.1, len(found)) for share in shares)
    between = np.corrcoef(draws) - np.eye(5)
    assert np.abs(between).max() < 5 / np.sqrt(len(sentence))


# Words into tokens


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=1, max_size=12), st.data())
def test_a_word_keeps_all_its_tokens_and_a_masked_one_becomes_one_mask(words, data):
    index = data.draw(st.lists(st.integers(MASKED, len(words) - 1), min_size=1, max_size=20))
    first = np.cumsum([0, *map(len, words)])
    found, lengths = noise.tokens(np.concatenate(words), first, np.array(index), MASK_ID)
    expected = [[MASK_ID] if i == MASKED else words[i] for i in index]
    assert found.tolist() == [token for word in expected for token in word]
    assert lengths.tolist() == [len(word) for word in expected]


# Masked tokens


@pytest.fixture(scope="module")
def masked():
    """100,000 tokens 1000 to 1499 in 2000 sentences, with choices 0 to 499 -> originals, inputs, targets."""
    ids = 1000 + np.arange(100_000) % 500
    inputs, targets = noise.mask_tokens(ids, 0.15, 42, 0, np.arange(2000), np.full(2000, 50), MASK_ID, np.arange(500))
    return ids, inputs, targets


def test_fifteen_percent_of_the_tokens_are_asked_for(masked):
    _, _, targets = masked
    assert near((targets != UNTOUCHED).mean(), 0.15, 100_000)


def test_of_those_asked_for_eighty_are_masked_ten_random_and_ten_as_they_were(masked):
    ids, inputs, targets = masked
    asked = targets != UNTOUCHED
    count = asked.sum()
    assert near((inputs[asked] == MASK_ID).sum() / count, 0.8, count)
    assert near((inputs[asked] < 500).sum() / count, 0.1, count)
    assert near((inputs[asked] == ids[asked]).sum() / count, 0.1, count)


def test_what_is_asked_for_is_what_stood_there_and_the_rest_is_untouched(masked):
    ids, inputs, targets = masked
    asked = targets != UNTOUCHED
    assert (targets[asked] == ids[asked]).all()
    assert (inputs[~asked] == ids[~asked]).all()


def test_every_choice_can_stand_in_for_a_token(masked):
    """About 1500 draws of 500 choices miss a given one with a chance of 1 in 20."""
    _, inputs, _ = masked
    chosen = inputs[inputs < 500]
    assert len(np.unique(chosen)) > 450
    assert near((chosen < 250).mean(), 0.5, len(chosen))


@settings(deadline=None)
@given(RATIOS, SENTENCES, SEEDS, EPOCHS)
def test_at_least_one_token_of_a_sentence_is_asked_for(ratio, sentences, seed, epoch):
    rows, counts = arrays(sentences)
    ids = np.arange(counts.sum())
    _, targets = noise.mask_tokens(ids, ratio, seed, epoch, rows, counts, MASK_ID, np.array([5]))
    for part, original in zip(*(np.split(x, np.cumsum(counts)[:-1]) for x in (targets, ids)), strict=True):
        asked = part != UNTOUCHED
        assert asked.any() and (part[asked] == original[asked]).all()
