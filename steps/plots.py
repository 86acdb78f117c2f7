"""The tracked curves and predictions -> PNG pictures for people.

DVC draws the same files itself (`dvc plots show`); these are for MLflow and the README.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

BATCH = 32      # of the bars by batch, as CoLA's published evaluation has them


def read(path: Path) -> dict[str, list[str]]:
    """The columns of a CSV file."""
    with open(path, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {name: [row[name] for row in rows] for name in rows[0]}


def numbers(values: list[str]) -> list[float]:
    """Empty cells are nan."""
    return [float(value or "nan") for value in values]


def draw(recipe: str, labels: Sequence[str], curves: Path, test: Path, folder: Path) -> list[Path]:
    """loss.png, dev_score.png, and of what is predicted: predicted.png, or of a classifier with these labels
    confusion.png and batches.png."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    loss = {k: numbers(v) for k, v in read(curves / "loss.csv").items()}
    epochs = {k: numbers(v) for k, v in read(curves / "epochs.csv").items()}
    rows = read(test / "predictions.csv")
    score = next(c for c in epochs if c.startswith("dev_") and c != "dev_loss")
    made = []

    def picture(name: str, x: str, y: str, size: tuple[float, float] = (6, 4)):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set(title=f"{recipe}: {name.replace('_', ' ')}", xlabel=x, ylabel=y)
        made.append((figure, folder / f"{name}.png"))
        return axes

    axes = picture("loss", "step", "loss")
    axes.grid(alpha=0.3)
    axes.plot(loss["step"], loss["loss"], alpha=0.3, label="training, by step")
    axes.plot(epochs["step"], epochs["dev_loss"], marker="o", label="dev, by evaluation")
    axes.plot(epochs["step"], epochs["train_loss"], marker="o", label="training, mean since the evaluation before")
    axes.legend()
    axes = picture("dev_score", "epoch", score.removeprefix("dev_"))
    axes.grid(alpha=0.3)
    axes.plot(epochs["epoch"], epochs[score], marker="o")
    if labels:
        _confusion(picture("confusion", "predicted", "gold"), rows, labels)
        _batches(picture("batches", f"batch of {BATCH} test rows", "Matthews correlation", (8, 4)), rows, labels)
    else:
        axes = picture("predicted", "gold label", "predicted")
        axes.grid(alpha=0.3)
        for who, label, alpha in (("base", "base model", 0.3), ("model", "this model", 0.5)):
            axes.scatter(numbers(rows["gold"]), numbers(rows[who]), s=8, alpha=alpha, label=label)
        axes.legend()
    for figure, path in made:
        figure.savefig(path, dpi=120)
    return [path for _, path in made]


def _confusion(axes, rows: dict[str, list[str]], names: Sequence[str]) -> None:
    """Shares of each gold class, with counts."""
    import numpy as np

    counts = np.zeros((len(names), len(names)), int)
    for gold, model in zip(rows["gold"], rows["model"], strict=True):
        counts[names.index(gold), names.index(model)] += 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(column, row, count, ha="center", va="center", color="white" if shares[row, column] > 0.5 else "black")


def _batches(axes, rows: dict[str, list[str]], names: Sequence[str]) -> None:
    """Matthews correlation of each batch of test rows, and of all of them as a line."""
    import numpy as np

    from steps import statistics

    gold, model = (np.array([names.index(name) for name in rows[who]]) for who in ("gold", "model"))
    bars = [float(statistics.matthews(gold[i:i + BATCH], model[i:i + BATCH])) for i in range(0, len(gold), BATCH)]
    axes.bar(range(len(bars)), bars)
    total = float(statistics.matthews(gold, model))
    axes.axhline(total, color="black", linestyle="--", label=f"all {len(gold)} rows: {total:.3f}")
    axes.legend()
