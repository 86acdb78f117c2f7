"""Tokenized Arrow files -> batches, or parts of them, of similar length, padded no further than their longest text."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from steps import noise, ranks
from steps.progress import Progress

IDS = "_input_ids"
MASK = "_attention_mask"
WORDS = "_word_starts"      # where each word begins among the token ids, and where the last ends
ROW = "row"                 # the number of a row of text; negative where it is held out


def load(path: Path):
    """The Arrow file as a memory-mapped datasets.Dataset of what batches are made of."""
    from datasets import Dataset

    dataset = Dataset.from_file(str(path))
    return dataset.select_columns([c for c in dataset.column_names if c.endswith((IDS, WORDS)) or c in ("label", ROW)])


def columns(dataset) -> list[str]:
    """The names of the tokenized text columns, in the order the loss expects."""
    return [c.removesuffix(IDS) for c in dataset.column_names if c.endswith(IDS)]


def lengths(dataset) -> np.ndarray:
    """[n] tokens of each example, all its texts together."""
    import pyarrow.compute as pc

    table = dataset.with_format("arrow")[:]
    return sum(pc.list_value_length(table[c + IDS]).to_numpy() for c in columns(dataset))


def pad(texts: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Token ids of b texts -> input_ids and attention_mask, both [b, longest]."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(texts), longest), dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, :len(text)] = torch.as_tensor(text)
        mask[row, :len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def parts(batch: Mapping[str, torch.Tensor], saving: int) -> Iterator[dict[str, torch.Tensor]]:
    """A batch, longest rows first -> its rows in parts, padded no further than each needs.

    As few and such parts that the padding is least where each further part counts for `saving` tokens of it.
    """
    masks = [name for name in batch if name.endswith(MASK)]
    for start, end in cuts(sum(batch[mask].sum(1) for mask in masks).cpu().numpy(), saving):
        part = {name: value[start:end] for name, value in batch.items()}
        for mask in masks:
            longest = int(part[mask].sum(1).max())
            for name in (mask, mask.removesuffix(MASK) + IDS):
                part[name] = part[name][:, :longest].contiguous()
        yield part


def cuts(lengths: np.ndarray, saving: int) -> list[tuple[int, int]]:
    """Lengths [b] of rows -> the bounds of parts of them: with the least sum of rows x longest + saving."""
    least, begins = [0], []
    for end in range(1, len(lengths) + 1):
        longest = np.maximum.accumulate(lengths[:end][::-1])[::-1]      # of the part that begins at each row
        costs = np.array(least) + np.arange(end, 0, -1) * longest + saving
        begins.append(int(costs.argmin()))
        least.append(int(costs.min()))
    found, end = [], len(lengths)
    while end:
        found.append((begins[end - 1], end))
        end = begins[end - 1]
    return found[::-1]


def longest_first(texts: Sequence[Sequence[int]], batch_size: int, pad_id: int,
                  device) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Token ids of n texts -> batches, as their places among them and their tensors, so that padding is small."""
    sizes = np.array([len(text) for text in texts])
    order = np.argsort(-sizes, kind="stable")
    done, progress = np.cumsum(sizes[order]) / sizes.sum(), Progress("encoding", len(texts), "texts")
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        yield chosen, {k: v.to(device) for k, v in pad([texts[i] for i in chosen], pad_id).items()}
        if ranks.first():
            progress.at(start + len(chosen), done[start + len(chosen) - 1])


def labels(dataset) -> np.ndarray:
    """[n] labels, or [n, dim] vectors; ones where the examples have none, as in triplets."""
    if "label" not in dataset.column_names:
        return np.ones(len(dataset))
    return np.asarray(dataset.with_format("numpy")["label"][:], np.float64)


def texts(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The named columns of text of a prepared Arrow file."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_stream(source).read_all()
        return {name: table[name].to_pylist() for name in names if name in table.column_names}


class Collator:
    """Rows of token ids -> {NAME_input_ids, NAME_attention_mask, label}, what the library's trainer takes."""

    valid_label_columns = ("label",)

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = {}
        if "label" in rows[0]:
            batch["label"] = torch.as_tensor(np.asarray([row["label"] for row in rows]))
            if batch["label"].is_floating_point():
                batch["label"] = batch["label"].float()
        for column in (key.removesuffix(IDS) for key in rows[0] if key.endswith(IDS)):
            batch |= self.padded(column, [row[column + IDS] for row in rows])
        return batch

    def padded(self, name: str, texts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        return {f"{name}_{key}": tensor for key, tensor in pad(texts, self.pad_id).items()}


class NoiseCollator(Collator):
    """Rows of plain text -> its words with noise, and the original. A held-out row has the same noise always.

    The trainer sets `batches` to what yields the batches, which knows the epoch.
    """

    batches: "LengthGroupedBatches | None" = None

    def __init__(self, tokenizer, kind: str, ratio: float, seed: int, max_length: int):
        super().__init__(tokenizer.pad_token_id)
        self.kind, self.ratio, self.seed, self.mask_id = kind, ratio, seed, tokenizer.mask_token_id or 0
        self.max_length = max_length

    def epoch(self, numbers: np.ndarray) -> int:
        return 0 if numbers[0] < 0 or self.batches is None else self.batches.epoch

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        original = [np.asarray(row["text" + IDS]) for row in rows]
        damaged = self.damage(original, [np.asarray(row["text" + WORDS]) for row in rows],
                              np.asarray([row[ROW] for row in rows]))
        return self.padded("noised", damaged) | self.padded("text", original)

    def damage(self, ids: list[np.ndarray], words: list[np.ndarray], numbers: np.ndarray) -> list[np.ndarray]:
        """Token ids of b rows and the starts of their words -> their ids with noise, at most max_length of them.

        Special tokens stay.
        """
        counts = np.array([len(w) - 1 for w in words])
        index, left = noise.words(self.kind, self.ratio, self.seed, self.epoch(numbers), numbers, counts)
        flat = np.concatenate([i[w[0]:w[-1]] for i, w in zip(ids, words, strict=True)])
        first = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(w) for w in words]))])
        tokens, lengths = noise.tokens(flat, first, index, self.mask_id)
        ends = np.cumsum(lengths)[np.cumsum(left) - 1]
        inner = np.split(tokens, ends[:-1])
        return [np.concatenate([i[:w[0]], part[:self.max_length - len(i) + w[-1] - w[0]], i[w[-1]:]])
                for i, w, part in zip(ids, words, inner, strict=True)]


class MaskCollator(NoiseCollator):
    """Rows of plain text -> its tokens with some masked, and as labels the ids that were there, -100 elsewhere."""

    def __init__(self, tokenizer, ratio: float, seed: int, max_length: int):
        super().__init__(tokenizer, "mask", ratio, seed, max_length)
        special = set(tokenizer.all_special_ids)
        self.choices = np.array([i for i in range(len(tokenizer)) if i not in special])

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [np.asarray(row["text" + IDS]) for row in rows]
        inner = [i[1:-1] for i in ids]      # all but the special tokens at both ends
        numbers = np.asarray([row[ROW] for row in rows])
        counts = np.array([len(i) for i in inner])
        masked, targets = noise.mask_tokens(np.concatenate(inner), self.ratio, self.seed, self.epoch(numbers),
                                            numbers, counts, self.mask_id, self.choices)
        cuts = np.cumsum(counts)[:-1]
        full = [np.concatenate([i[:1], part, i[-1:]]) for i, part in zip(ids, np.split(masked, cuts), strict=True)]
        asked = [np.concatenate([[-100], part, [-100]]) for part in np.split(targets, cuts)]
        return self.padded("text", full) | {"label": torch.where(
            (padded := pad(asked, -100))["attention_mask"] == 1, padded["input_ids"], -100)}


class LengthGroupedBatches:
    """Batches of examples of similar length in random order: a pure function of (seed, epoch).

    Every example once an epoch. `grouping` batches are shuffled together and then sorted by length, so that batches
    stay random in all but length; 1 leaves them random in length too. The longest of a batch come first.

    With `keys`, the texts of each example as numbers [n, columns], no two examples of a batch share a text: one that
    would waits for a later batch, there before longer ones, and those that find none are left out of the epoch.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, grouping: int, seed: int, keys: np.ndarray | None = None):
        self.lengths, self.batch_size, self.grouping = lengths, batch_size, grouping
        self.seed, self.keys = seed, keys
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        together = self.batch_size * self.grouping
        chunks = (order[start:start + together] for start in range(0, len(order), together))
        chunks = (chunk[np.argsort(-self.lengths[chunk], kind="stable")].tolist() for chunk in chunks)
        batches = list(self._distinct(chunks) if self.keys is not None else self._cut(chunks))
        random.shuffle(batches)
        yield from batches

    def _cut(self, chunks: Iterator[list[int]]) -> Iterator[list[int]]:
        for chunk in chunks:
            yield from (chunk[i:i + self.batch_size] for i in range(0, len(chunk), self.batch_size))

    def _distinct(self, chunks: Iterator[list[int]]) -> Iterator[list[int]]:
        waiting: list[int] = []
        made = 0
        for chunk in chunks:
            last = (made * self.batch_size + len(waiting) + len(chunk)) >= len(self.lengths)
            pool, waiting = waiting + chunk, []
            while pool and (len(pool) >= self.batch_size or last) and made < len(self):
                batch, seen, passed = [], set(), []
                for place, example in enumerate(pool):
                    if len(batch) == self.batch_size:
                        passed += pool[place:]
                        break
                    if seen.isdisjoint(mine := self.keys[example].tolist()):
                        seen.update(mine)
                        batch.append(example)
                    else:
                        passed.append(example)
                if len(batch) < self.batch_size and not last:
                    break       # too alike; more come with the next chunk
                pool = passed
                made += 1
                yield batch
            waiting = pool


def keys(path: Path, names: Sequence[str]) -> np.ndarray:
    """[n, columns] the number of each text of a prepared Arrow file, equal for equal texts in any column."""
    columns = texts(path, names)
    known: dict[str, int] = {}
    return np.stack([[known.setdefault(t.strip().lower(), len(known)) for t in columns[name]] for name in names], 1)
