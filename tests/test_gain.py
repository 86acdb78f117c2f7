"""A gain means learning: true labels give one, shuffled ones do not."""

import random

import pytest

from tests.project import write_rows
from tests.test_evaluate import PAIR, ask, judge, trained

TOPICS = (["filter", "dust", "clean", "wash", "dirty", "brush", "rinse", "water"],
          ["noise", "loud", "fan", "rattle", "sound", "hum", "bearing", "screw"])


def pairs(count: int, seed: int) -> list[list[str]]:
    """Pairs without a common word, alike where both are of one topic: only training can tell."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        one, other = draw.choice(TOPICS), draw.choice(TOPICS)
        rows.append([" ".join(draw.sample(one[:4], 3)), " ".join(draw.sample(other[4:], 3)),
                     "5" if one is other else "0"])
    return rows


@pytest.mark.parametrize("labels", ["true", "shuffled"])
def test_a_model_gains_from_true_labels_and_not_from_shuffled_ones(tmp_path, tiny_model, labels):
    for split, count, seed in (("train", 128, 1), ("dev", 64, 2), ("test", 128, 3)):
        told = pairs(count, seed)
        if labels == "shuffled" and split != "test":
            scores = [row[2] for row in told]
            random.Random(seed).shuffle(scores)
            told = [[*row[:2], score] for row, score in zip(told, scores, strict=True)]
        write_rows(tmp_path / f"raw/{split}.csv", [[*PAIR, "score"], *told])
    (tmp_path / "raw/source.json").write_text('{"name": "topics"}', encoding="utf-8")
    settings = ask(tmp_path / "raw", tiny_model, epochs=4, learning_rate=0.003)
    trained(settings, tmp_path)
    found = judge(settings, tmp_path / "data", tmp_path / "model", tmp_path / "out")["spearman_cosine"]
    if labels == "true":
        assert found["gain_low"] > 0.2
    else:
        assert found["gain_low"] < 0
