"""What the noise of a row costs: each kind, over words and over tokens, for 100,000 sentences.

python -m benchmarks.noise [--batch-size 8] [--repeats 5]

Sentences have 4 to 20 words, of which every fourth has two tokens, as a BERT vocabulary cuts English. `words` is what
changes with the epoch (steps/noise.py); `collator` is all that a batch takes from its stored rows to padded tensors.
"""

import argparse
import time
from statistics import median
from types import SimpleNamespace

SENTENCES = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    import numpy as np

    from steps import batching, noise

    draw = np.random.default_rng(0)
    counts, numbers = draw.integers(4, 21, SENTENCES), np.arange(SENTENCES)
    rows = []
    for number, count in enumerate(counts):
        starts = np.concatenate([[1], 1 + np.cumsum(1 + (np.arange(count) % 4 == 3))])
        ids = draw.integers(1000, 30000, starts[-1] + 1)
        rows.append({"text" + batching.IDS: ids, "text" + batching.WORDS: starts, batching.ROW: number})
    tokenizer = SimpleNamespace(pad_token_id=0, mask_token_id=103)
    size = options.batch_size

    def batches(work) -> list[float]:
        seconds = []
        for epoch in range(options.repeats):
            began = time.process_time()
            for start in range(0, SENTENCES, size):
                work(epoch, start, start + size)
            seconds.append(time.process_time() - began)
        return seconds

    for kind in noise.KINDS:
        collator = batching.NoiseCollator(tokenizer, kind, 0.6, seed=42, max_length=64)
        at_once = []
        for epoch in range(options.repeats):
            began = time.process_time()
            noise.words(kind, 0.6, 42, epoch, numbers, counts)
            at_once.append(time.process_time() - began)
        by_batch = batches(lambda epoch, a, b, k=kind: noise.words(k, 0.6, 42, epoch, numbers[a:b], counts[a:b]))
        whole = batches(lambda epoch, a, b, c=collator: c(rows[a:b]))
        print(f"{kind:6}  words {median(at_once):6.3f} s at once, {median(by_batch):6.2f} s in batches of {size}; "
              f"collator {median(whole):6.2f} s", flush=True)


if __name__ == "__main__":
    main()
