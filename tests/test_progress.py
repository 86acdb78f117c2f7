"""How far long work is, and how much time is left, by a clock that the tests set."""

from pathlib import Path

import pytest

from steps import embedding, progress, writing
from tests.conftest import findings


@pytest.fixture
def tick(monkeypatch):
    """tick(seconds): so much time passes."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_line_each_five_seconds_has_the_share_and_the_time_left(tick, capsys):
    found, said = progress.Progress("training", 8, "steps"), []
    for done in range(1, 9):
        tick(2)
        found.at(done)
        said.append(capsys.readouterr().out)
    assert said == ["", "", "training 3/8 steps (38%), 10 s left\n", "", "",
                    "training 6/8 steps (75%), 4 s left\n", "", ""]


def test_what_was_done_before_the_start_took_no_time(tick, capsys):
    """5 of 10 were there; the sixth takes 10 s, so 4 more take 40."""
    found = progress.Progress("training", 10, "steps")
    tick(100)
    found.start(5)
    tick(10)
    found.at(6)
    assert capsys.readouterr().out == "training 6/10 steps (60%), 40 s left\n"


def test_the_time_left_goes_by_the_share_of_the_work_where_that_is_told(tick, capsys):
    found = progress.Progress("encoding", 10, "texts")
    tick(6)
    found.at(2, share=0.5)
    assert capsys.readouterr().out == "encoding 2/10 texts (50%), 6 s left\n"


def test_without_a_total_no_time_is_told(tick, capsys):
    found = progress.Progress("preparing train:", None, "rows")
    tick(6)
    found.at(2)
    assert capsys.readouterr().out == "preparing train: 2 rows\n"


def test_encoding_says_how_much_of_the_tokens_is_done(tiny_model, monkeypatch, capsys):
    """The longest come first: 6 tokens of 10 are in the first batch."""
    monkeypatch.setattr(progress, "HEARTBEAT", 0)
    embedding.embed(embedding.encoder(tiny_model, 16, "mean"), [[2, 3], [2, 4, 5, 6, 7, 3], [2, 3]], 1)
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "encoding 1/3 texts (60%)", "encoding 2/3 texts (80%)", "encoding 3/3 texts (100%)"]


def test_preparing_says_how_many_rows_are_written(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "HEARTBEAT", 0)
    monkeypatch.setattr(writing, "CHUNK", 2)
    writer = writing.Writer(tiny_model, 16, Path(tmp_path), findings(tmp_path))
    writer.write("train", ["text"], [{"text": "filter"}] * 3)
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "preparing train: 2/3 rows (67%)", "preparing train: 3/3 rows (100%)", "train: 3 rows"]
