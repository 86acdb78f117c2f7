"""The pictures of an evaluation: which are drawn, and what stands in them."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from steps import plots
from tests.project import write_rows

LOSS = [["step", "loss", "learning_rate"], ["1", "0.9", "0.001"], ["2", "0.7", "0.0005"]]
EPOCHS = [["epoch", "step", "dev_loss", "dev_f1_macro", "train_loss"], ["0", "0", "", "0.2", ""],
          ["1", "2", "0.8", "0.3", "0.8"]]
CLASSES = [["wet", "wet", "wet"], ["wet", "wet", "dry"], ["dry", "wet", "dry"], ["dry", "wet", "dry"]]
PAIRS = [["1.0", "0.7", "0.9"], ["0.5", "0.6", "0.4"], ["0.0", "0.5", "0.1"]]
NAMES = ("dry", "wet")
WET_AND_DRY = [["wet", "wet", "wet"], ["dry", "wet", "dry"]]


def draw(folder: Path, labels: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """The names of the pictures drawn of these (gold, base, model); each is a PNG file."""
    write_rows(folder / "curves/loss.csv", LOSS)
    write_rows(folder / "curves/epochs.csv", EPOCHS)
    write_rows(folder / "test/predictions.csv",
               [["gold", "base", "model", "text"], *([*row, "a text"] for row in rows)])
    made = plots.draw("emotion", labels, folder / "curves", folder / "test", folder / "plots")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    return [path.relative_to(folder / "plots").as_posix() for path in made]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn(labels, rows) -> {name: axes} of the pictures."""
    axes = {}
    save = Figure.savefig

    def keep(figure, path, **options) -> None:
        axes[path.stem], = figure.axes
        save(figure, path, **options)
    monkeypatch.setattr(Figure, "savefig", keep)
    return lambda labels, rows: draw(tmp_path, labels, rows) and axes


def heights(axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches]


def test_an_encoder_has_curves_and_what_it_predicts(tmp_path):
    assert draw(tmp_path, (), PAIRS) == ["loss.png", "dev_score.png", "predicted.png"]


def test_a_classifier_has_curves_its_confusions_and_its_batches(tmp_path):
    assert draw(tmp_path, NAMES, CLASSES) == ["loss.png", "dev_score.png", "confusion.png", "batches.png"]


def test_the_curves_are_those_of_the_files(drawn):
    axes = drawn((), PAIRS)
    assert axes["loss"].lines[0].get_xydata().tolist() == [[1.0, 0.9], [2.0, 0.7]]
    assert axes["loss"].lines[1].get_xydata().tolist()[1] == [2.0, 0.8]
    assert axes["loss"].lines[2].get_xydata().tolist()[1] == [2.0, 0.8]
    assert axes["dev_score"].lines[0].get_xydata().tolist() == [[0.0, 0.2], [1.0, 0.3]]
    assert axes["dev_score"].get_ylabel() == "f1_macro"


def test_base_and_model_are_drawn_against_gold(drawn):
    base, model = drawn((), PAIRS)["predicted"].collections
    assert base.get_offsets().tolist() == [[1.0, 0.7], [0.5, 0.6], [0.0, 0.5]]
    assert model.get_offsets().tolist() == [[1.0, 0.9], [0.5, 0.4], [0.0, 0.1]]


def test_confusions_are_counted_by_gold_in_rows_and_predicted_in_columns(drawn):
    """Of two wet one is taken for dry; both dry are found. Classes stand in the order of the labels."""
    axes = drawn(NAMES, CLASSES)["confusion"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dry", "wet"]
    assert [text.get_text() for text in axes.texts] == ["2", "0", "1", "1"]
    assert axes.images[0].get_array().tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_a_bar_is_a_batch_of_32_rows(drawn):
    """The first 32 rows are right, the other 16 all wrong; by hand: (32 - 16) / 48 of both classes."""
    wrong = [["wet", "wet", "dry"], ["dry", "wet", "wet"]]
    axes = drawn(NAMES, WET_AND_DRY * 16 + wrong * 8)["batches"]
    assert heights(axes) == pytest.approx([1.0, -1.0])
    assert axes.lines[0].get_ydata() == pytest.approx([1 / 3, 1 / 3])


def test_a_single_batch_is_one_bar(drawn):
    assert heights(drawn(NAMES, WET_AND_DRY)["batches"]) == pytest.approx([1.0])


def test_a_constant_prediction_has_no_correlation_and_is_drawn(drawn):
    axes = drawn(NAMES, [["wet", "wet", "wet"], ["dry", "wet", "wet"]] * 40)
    assert heights(axes["batches"]) == [0.0, 0.0, 0.0]
    assert [text.get_text() for text in axes["confusion"].texts] == ["0", "40", "0", "40"]


def test_one_class_alone_is_drawn(drawn):
    axes = drawn(NAMES, [["wet", "wet", "wet"]] * 5)
    assert heights(axes["batches"]) == [0.0]
    assert [text.get_text() for text in axes["confusion"].texts] == ["0", "0", "0", "5"]


def test_a_constant_similarity_is_drawn(tmp_path):
    assert "predicted.png" in draw(tmp_path, (), [["1.0", "0.5", "0.5"]] * 3)


def test_a_single_evaluation_and_a_single_step_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_plots.LOSS", LOSS[:2])
    monkeypatch.setattr("tests.test_plots.EPOCHS", EPOCHS[:2])
    assert len(draw(tmp_path, NAMES, CLASSES)) == 4
