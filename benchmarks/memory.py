"""Peak memory of preparing a small and a large corpus of plain text.

python -m benchmarks.memory [--sentences 100000 1000000]

Run it in the project's folder, where models/base/all-MiniLM-L6-v2 is (dvc repro prepare@tsdae). Each corpus is made
of random words, in documents of 20 sentences, and prepared by a process of its own; printed are the peak of its
resident memory, its seconds, and the ratios to the first.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from steps import command

DOCUMENT, LENGTH = 20, 10       # sentences, words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, nargs="+", default=[100_000, 1_000_000])
    options = parser.parse_args()
    command.quiet()
    first = None
    for count in options.sentences:
        with tempfile.TemporaryDirectory() as folder:
            corpus(Path(folder), count)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, peak = pool.apply(prepared, (folder, count))
        first = first or (seconds, peak)
        print(f"{count:>9,} sentences: {peak / 1e6:,.0f} MB at the peak ({peak / first[1]:.2f} times the first), "
              f"{seconds:.0f} s ({seconds / first[0]:.1f} times)", flush=True)


def corpus(folder: Path, count: int) -> None:
    words = ["".join(random.choices("abcdefghijklmnoprstuvw", k=random.randint(2, 9))) for _ in range(20_000)]
    (folder / "raw").mkdir()
    with open(folder / "raw/train.jsonl", "w", encoding="utf-8") as file:
        for number in range(count // DOCUMENT):
            text = " ".join(" ".join(random.choices(words, k=LENGTH)) + "." for _ in range(DOCUMENT))
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    (folder / "raw/source.json").write_text(json.dumps({"name": "made"}), encoding="utf-8")


def prepared(folder: str, count: int) -> tuple[float, int]:
    """Seconds and peak bytes of preparing the corpus as the recipe tsdae does."""
    from steps import params, prepare, recipes

    settings = params.load().recipe("tsdae")
    settings = settings.model_copy(update={
        "dataset": f"{folder}/raw",
        "prepare": settings.prepare.model_copy(update={"limit": count})})
    began = time.monotonic()
    prepare.prepare(recipes.get("tsdae"), settings, Path(folder) / "prepared")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    random.seed(0)
    main()
