"""Batches: every example once, the same order every time, little padding, no text twice, noise of the epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from steps import batching, writing
from steps.batching import LengthGroupedBatches
from tests.conftest import findings
from tests.project import sample

GROUPING = 50
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=300).map(np.array)
BATCH_SIZES = st.integers(1, 9)
SEEDS = st.integers(0, 2**32)
TEXTS = ("sentence1", "sentence2")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, tiny_model):
    """The sample training pairs as an Arrow file, tokenized."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = ({"sentence1": one, "sentence2": other, "label": float(score) / 5}
            for one, other, score in sample("train", 500)[1:])
    writing.Writer(tiny_model, 128, folder, findings(folder)).write("train", TEXTS, rows)
    return folder / "train.arrow"


@pytest.fixture(scope="module")
def prepared(pairs):
    return batching.load(pairs)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_model):
    """Plain text with the starts of its words, 36 rows of train and 4 held out."""
    folder = tmp_path_factory.mktemp("plain")
    writer = writing.Writer(tiny_model, 32, folder, findings(folder))
    writer.write_text(({"text": row[0]} for row in sample("train", 40)[1:]), 0.1, words=True)
    return {split: list(batching.load(folder / f"{split}.arrow")) for split in ("train", "held_out")}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def batches(lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[list[int]]:
    sampler = LengthGroupedBatches(lengths, size, GROUPING, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@settings(deadline=None)
@given(LENGTHS, BATCH_SIZES, SEEDS, st.integers(0, 5))
def test_every_example_stands_in_an_epoch_once(lengths, size, seed, epoch):
    found = batches(lengths, size, seed, epoch)
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))


@settings(deadline=None)
@given(LENGTHS, BATCH_SIZES, SEEDS)
def test_every_batch_is_full_but_one_with_the_rest(lengths, size, seed):
    full, rest = divmod(len(lengths), size)
    found = batches(lengths, size, seed, 0)
    assert sorted(map(len, found), reverse=True) == [size] * full + [rest] * (rest > 0)
    assert len(LengthGroupedBatches(lengths, size, GROUPING, seed)) == len(found)


@settings(deadline=None)
@given(LENGTHS, BATCH_SIZES, SEEDS, st.integers(0, 5))
def test_the_order_is_a_function_of_seed_and_epoch(lengths, size, seed, epoch):
    used = LengthGroupedBatches(lengths, size, GROUPING, seed)
    list(used)                      # what ran before, and what other code draws, changes nothing
    np.random.seed(epoch)
    used.set_epoch(epoch)
    assert list(used) == batches(lengths, size, seed, epoch) == list(used)


def test_other_epochs_and_other_seeds_have_other_orders():
    lengths = np.arange(200) % 17
    orders = [batches(lengths, 8, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(order) for order in orders}) == 9


def test_long_and_short_batches_come_in_random_order():
    """Lengths fall within a chunk before it is shuffled; left so, every epoch would start with the longest."""
    lengths = np.arange(400)
    first = [lengths[batches(lengths, 8, 1, epoch)[0]].max() for epoch in range(20)]
    assert min(first) < 150 and max(first) > 250


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=20), min_size=1, max_size=10))
def test_padding_reaches_the_longest_text_and_no_further(texts):
    padded = batching.pad(texts, pad_id=0)
    ids, mask = padded["input_ids"], padded["attention_mask"]
    assert ids.shape == mask.shape == (len(texts), max(map(len, texts)))
    for text, row, seen in zip(texts, ids.tolist(), mask.tolist(), strict=True):
        rest = len(row) - len(text)
        assert row == text + [0] * rest
        assert seen == [1] * len(text) + [0] * rest


def test_the_collator_pads_each_column_by_itself():
    rows = [{"sentence1_input_ids": [5], "sentence2_input_ids": [6, 7, 8], "label": 0.5},
            {"sentence1_input_ids": [1, 2], "sentence2_input_ids": [3], "label": 1.0}]
    batch = batching.Collator(pad_id=9)(rows)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "label": [0.5, 1.0],
        "sentence1_input_ids": [[5, 9], [1, 2]], "sentence1_attention_mask": [[1, 0], [1, 1]],
        "sentence2_input_ids": [[6, 7, 8], [3, 9, 9]], "sentence2_attention_mask": [[1, 1, 1], [1, 0, 0]]}


def test_lengths_are_the_tokens_of_all_texts_of_a_row(prepared):
    assert batching.columns(prepared) == ["sentence1", "sentence2"]
    assert prepared.column_names == ["sentence1_input_ids", "sentence2_input_ids", "label"]
    assert batching.lengths(prepared).tolist() == [
        len(row["sentence1_input_ids"]) + len(row["sentence2_input_ids"]) for row in prepared]


def test_grouping_by_length_pads_clearly_less_than_random_order(prepared):
    collate = batching.Collator(pad_id=0)
    rows = list(prepared)

    def share(order: list[list[int]]) -> float:
        masks = [collate([rows[i] for i in batch])[f"{column}_attention_mask"]
                 for batch in order for column in ("sentence1", "sentence2")]
        return 1 - sum(int(m.sum()) for m in masks) / sum(torch.numel(m) for m in masks)

    order = np.random.default_rng(1).permutation(len(rows)).tolist()
    random = share([order[i:i + 16] for i in range(0, len(order), 16)])
    grouped = share(batches(batching.lengths(prepared), 16, 1, 0))
    assert 0 < grouped < 0.8 * random, (grouped, random)


# No text twice in a batch


def distinct(keys: np.ndarray, size: int, seed: int = 1, epoch: int = 0) -> list[list[int]]:
    sampler = LengthGroupedBatches(np.arange(len(keys)) % 23, size, GROUPING, seed, keys=keys)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)       # the trainer plans its steps by it
    return found


KEYS = st.integers(1, 200).flatmap(lambda n: st.lists(
    st.lists(st.integers(0, n), min_size=3, max_size=3), min_size=1, max_size=200)).map(np.array)


@settings(deadline=None)
@given(KEYS, BATCH_SIZES, SEEDS, st.integers(0, 5))
def test_no_text_stands_twice_in_a_batch_nor_an_example_in_two(keys, size, seed, epoch):
    found = distinct(keys, size, seed, epoch)
    rows = [row for batch in found for row in batch]
    assert len(rows) == len(set(rows))
    for batch in found:
        assert 1 <= len(batch) <= size
        for number, row in enumerate(batch):
            for other in batch[:number]:
                assert not set(keys[row]) & set(keys[other])


@settings(deadline=None)
@given(KEYS, BATCH_SIZES, SEEDS, st.integers(0, 5))
def test_distinct_batches_are_a_function_of_seed_and_epoch(keys, size, seed, epoch):
    assert distinct(keys, size, seed, epoch) == distinct(keys, size, seed, epoch)


def test_distinct_batches_of_other_epochs_and_seeds_are_others():
    keys = np.arange(300).reshape(100, 3)
    assert len({str(distinct(keys, 8, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("seed", range(5))
def test_nearly_every_example_is_seen_in_an_epoch_where_an_anchor_stands_three_times(seed):
    keys = np.stack([np.arange(999) // 3, 1000 + np.arange(999), 2000 + np.arange(999)], 1)
    assert sum(map(len, distinct(keys, 16, seed))) >= 0.99 * 999


def test_every_example_is_seen_where_no_text_stands_twice():
    keys = np.arange(3000).reshape(1000, 3)
    found = distinct(keys, 16)
    assert sorted(row for batch in found for row in batch) == list(range(1000))


def test_examples_that_all_share_an_anchor_come_one_by_one():
    keys = np.stack([np.zeros(100, int), 1 + np.arange(100), 101 + np.arange(100)], 1)
    assert [len(batch) for batch in distinct(keys, 8)] == [1] * 13


def test_a_triplet_that_names_one_text_twice_still_finds_a_batch():
    batch, = distinct(np.array([[0, 0, 1], [2, 2, 3]]), 2)
    assert sorted(batch) == [0, 1]


def test_equal_texts_have_equal_keys_in_whatever_column_and_case(tmp_path, tiny_model):
    rows = [{"anchor": "Water drips", "positive": "it leaks"}, {"anchor": "It leaks ", "positive": "a new one"}]
    writing.Writer(tiny_model, 32, tmp_path, findings(tmp_path)).write("train", ("anchor", "positive"), rows)
    assert batching.keys(tmp_path / "train.arrow", ("anchor", "positive")).tolist() == [[0, 1], [1, 2]]


def test_the_pairs_of_the_samples_share_texts_and_no_batch_does(pairs):
    keys = batching.keys(pairs, TEXTS)
    texts = batching.texts(pairs, TEXTS)
    assert len({*texts["sentence1"], *texts["sentence2"]}) < 2 * len(keys)
    for batch in distinct(keys, 16):
        told = [texts[column][row].lower().strip() for row in batch for column in TEXTS]
        assert len(told) == len(set(told))


# Noise


def noisy(tokenizer, epoch: int, kind: str = "delete", ratio: float = 0.6) -> batching.NoiseCollator:
    collator = batching.NoiseCollator(tokenizer, kind, ratio, seed=42, max_length=32)
    collator.batches = LengthGroupedBatches(np.ones(1), 1, 1, 42)
    collator.batches.set_epoch(epoch)
    return collator


def unpadded(batch: dict, name: str) -> list[list[int]]:
    return [ids[seen == 1].tolist()
            for ids, seen in zip(batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"], strict=True)]


def words(ids: list[int], tokenizer) -> list[str]:
    return "".join(f"{'' if t.startswith('##') else ' '}{t.removeprefix('##')}"
                   for t in tokenizer.convert_ids_to_tokens(ids)).split()


def test_deletion_leaves_whole_words_in_order_between_the_special_tokens(plain, tokenizer):
    batch = noisy(tokenizer, 0)(plain["train"])
    assert unpadded(batch, "text") == [row["text_input_ids"] for row in plain["train"]]
    shorter = 0
    for noised, original in zip(unpadded(batch, "noised"), unpadded(batch, "text"), strict=True):
        assert (noised[0], noised[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert len(noised) > 2
        rest = iter(words(original, tokenizer))
        assert all(word in rest for word in words(noised, tokenizer))
        shorter += len(noised) < len(original)
    assert shorter > 30


def test_mask_puts_one_mask_for_a_word_of_several_tokens(tokenizer):
    row = {"text_input_ids": [2, 10, 11, 12, 20, 3], "text_word_starts": [1, 4, 5], "row": 0}
    found = {tuple(unpadded(noisy(tokenizer, epoch, "mask", 0.5)([row]), "noised")[0]) for epoch in range(50)}
    mask = tokenizer.mask_token_id
    assert found == {(2, 10, 11, 12, 20, 3), (2, mask, 20, 3), (2, 10, 11, 12, mask, 3)}


def test_words_that_are_inserted_make_no_text_longer_than_max_length(plain, tokenizer):
    cut, whole = noisy(tokenizer, 0, "insert", 0.99), noisy(tokenizer, 0, "insert", 0.99)
    whole.max_length = 1000
    cut, whole = (unpadded(collator(plain["train"]), "noised") for collator in (cut, whole))
    assert max(map(len, whole)) > 40 and max(map(len, cut)) == 32
    assert [ids[:31] for ids in cut if len(ids) == 32] == [ids[:31] for ids in whole if len(ids) >= 32]
    assert {ids[-1] for ids in cut} == {tokenizer.sep_token_id}


def test_noise_differs_between_epochs_for_train_and_not_for_what_is_held_out(plain, tokenizer):
    seen = {split: {str(unpadded(noisy(tokenizer, epoch)(rows), "noised")) for epoch in range(3)}
            for split, rows in plain.items()}
    assert all(row["row"] < 0 for row in plain["held_out"])
    assert (len(seen["train"]), len(seen["held_out"])) == (3, 1)


def test_masked_tokens_differ_between_epochs_for_train_and_not_for_what_is_held_out(plain, tokenizer):
    seen = {split: set() for split in plain}
    for epoch in range(3):
        collator = batching.MaskCollator(tokenizer, 0.15, seed=42, max_length=32)
        collator.batches = noisy(tokenizer, epoch).batches
        for split, rows in plain.items():
            seen[split].add(str(collator(rows)["text_input_ids"].tolist()))
    assert (len(seen["train"]), len(seen["held_out"])) == (3, 1)


def test_labels_of_masked_tokens_are_what_stood_there_and_special_tokens_are_never_asked_for(plain, tokenizer):
    batch = batching.MaskCollator(tokenizer, 0.3, seed=42, max_length=32)(plain["train"])
    for row, ids, seen, asked in zip(plain["train"], batch["text_input_ids"], batch["text_attention_mask"],
                                     batch["label"], strict=True):
        original = row["text_input_ids"]
        count = len(original)
        assert seen.tolist() == [1] * count + [0] * (len(ids) - count)
        assert (ids[0], ids[count - 1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        places = [place for place, target in enumerate(asked.tolist()) if target != -100]
        assert {*places} and {*places} <= {*range(1, count - 1)}
        assert all(asked[place] == original[place] for place in places)
        assert all(ids[place] == original[place] for place in range(count) if place not in places)


def test_a_random_token_in_a_masked_ones_place_is_never_a_special_one(plain, tokenizer):
    collator = batching.MaskCollator(tokenizer, 0.15, seed=42, max_length=32)
    assert sorted({*range(len(tokenizer))} - {*collator.choices.tolist()}) == sorted(tokenizer.all_special_ids)
