"""Splits that are missing, and smaller runs: no text in two splits, every row somewhere, a function of the seed."""

from collections import Counter

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps import splitting
from steps.schema import Split, Subset

TEXTS = ("sentence1", "sentence2")


def rows(count: int) -> list[dict]:
    """Pairs that share no text."""
    return [{"sentence1": f"a{n}", "sentence2": f"b{n}", "label": n} for n in range(count)]


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=80),
       dev=st.sampled_from([0.0, 0.1, 0.3]), test=st.sampled_from([0.0, 0.2, 0.5]),
       given_dev=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_a_missing_split_is_taken_from_train_in_whole_groups(pairs, dev, test, given_dev, seed):
    train = [{"sentence1": f"{a}", "sentence2": f"{b}", "label": n} for n, (a, b) in enumerate(pairs)]
    splits = {"train": train} | ({"dev": [{"sentence1": "x", "sentence2": "y", "label": -1}]} if given_dev else {})
    missing = ["test"] if given_dev else ["test", "dev"]
    found = splitting.split_off(dict(splits), TEXTS, missing, Split(dev=dev, test=test, seed=seed))
    assert set(found) == {"train", "dev", "test"}
    assert not given_dev or found["dev"] == splits["dev"]

    everything = [row for split in found.values() for row in split]
    assert Counter(row["label"] for row in everything) == Counter(r["label"] for s in splits.values() for r in s)
    texts = {split: {row[c] for row in of for c in TEXTS} for split, of in found.items()}
    assert sum(map(len, texts.values())) == len(set().union(*texts.values()))

    # no more than its share; and what is lacking is less than any row left in train brings with it
    for split, share in ({"test": test} | ({} if given_dev else {"dev": dev})).items():
        lacking = round(len(train) * share) - len(found[split])
        assert lacking >= 0
        assert not found["train"] or lacking < smallest_group(found["train"])


def smallest_group(rows: list[dict]) -> int:
    """The size of the smallest set of rows that are linked by shared texts."""
    groups: list[tuple[set, int]] = []
    for row in rows:
        texts, size = {row["sentence1"], row["sentence2"]}, 1
        for other in [g for g in groups if g[0] & texts]:
            groups.remove(other)
            texts, size = texts | other[0], size + other[1]
        groups.append((texts, size))
    return min(size for _, size in groups)


def test_shares_of_pairs_that_share_no_text_are_exact():
    found = splitting.split_off({"train": rows(100)}, TEXTS, ["test", "dev"], Split(dev=0.1, test=0.2, seed=7))
    assert {split: len(of) for split, of in found.items()} == {"train": 70, "dev": 10, "test": 20}


def test_the_split_is_a_function_of_its_own_seed():
    first, again, other = (splitting.split_off({"train": rows(100)}, TEXTS, ["test", "dev"],
                                               Split(dev=0.1, test=0.2, seed=seed)) for seed in (7, 7, 8))
    assert first == again
    assert first["test"] != other["test"]


def test_rows_keep_their_order_within_a_split():
    found = splitting.split_off({"train": rows(100)}, TEXTS, ["test"], Split(dev=0.1, test=0.2, seed=7))
    for split in found.values():
        assert [row["label"] for row in split] == sorted(row["label"] for row in split)


def test_one_text_column_alone_makes_groups_too():
    train = [{"text": f"{n // 3}", "label": n} for n in range(30)]
    found = splitting.split_off({"train": train}, ["text"], ["test"], Split(dev=0.0, test=0.5, seed=1))
    assert len(found["test"]) == 15
    assert {row["text"] for row in found["train"]} & {row["text"] for row in found["test"]} == set()


def test_texts_that_decontamination_takes_for_one_stay_together():
    pairs = [{"sentence1": f"Title {n}"} for n in range(20)] + [{"sentence1": f"TITLE  {n}"} for n in range(20)]
    found = splitting.split_off({"train": pairs}, ["sentence1"], ["dev"], Split(dev=0.3, test=0.3, seed=1))
    assert len(found["dev"]) == 12
    assert len({row["sentence1"].casefold().split()[1] for row in found["dev"]}) == 6


@pytest.mark.parametrize("seed, train, dev", [(42, 1000, 100), (0, 7, 1), (3, 1, 30)])
def test_a_subset_is_what_datasets_draws(seed, train, dev):
    splits = {"train": rows(1200), "dev": rows(150), "test": rows(20)}
    found = splitting.subset(splits, Subset(seed=seed, train=train, dev=dev))
    for split, count in (("train", train), ("dev", dev)):
        theirs = datasets.Dataset.from_list(splits[split]).shuffle(seed=seed).select(range(count))
        assert found[split] == theirs.to_list()
    assert found["test"] == splits["test"]


def test_a_subset_larger_than_the_split_is_all_of_it():
    splits = {"train": rows(5), "dev": rows(3), "test": rows(2)}
    found = splitting.subset(splits, Subset(seed=1, train=10, dev=10))
    assert {s: sorted(r["label"] for r in of) for s, of in found.items()} == {
        "train": [0, 1, 2, 3, 4], "dev": [0, 1, 2], "test": [0, 1]}
