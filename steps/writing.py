"""Rows of text -> Arrow files of them and their tokens, a chunk at a time."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from math import floor
from pathlib import Path

from steps import decontamination, vocabulary
from steps.contract import Findings
from steps.progress import Progress
from steps.schema import InputError

CHUNK = 10_000      # rows tokenized and written together
NOISED = 50         # sentences with their noise that people can read
HELD_OUT = "held_out"


class Writer:
    """Tokenizes rows and writes them as Arrow streams into a folder, a chunk at a time."""

    def __init__(self, base_model: Path, max_length: int, folder: Path, found: Findings):
        self.tokenizer = vocabulary.tokenizer(base_model)
        if self.tokenizer.pad_token_id is None:
            raise InputError(f"{base_model}: its tokenizer has no padding token; choose an encoder that has one")
        vocabulary.check(base_model, self.tokenizer)
        self.base_model, self.max_length, self.folder, self.found = base_model, max_length, folder, found

    def write(self, name: str, texts: Iterable[str], rows: Iterable[dict], words: bool = False) -> None:
        """Writes rows to NAME.arrow and counts rows, cut texts and unknown tokens under NAME."""
        import pyarrow as pa

        total = len(rows) if isinstance(rows, Sized) else None
        rows, texts = iter(rows), tuple(texts)
        if words and not self.tokenizer.is_fast:
            raise InputError(f"{self.base_model}: its tokenizer does not say where words begin; choose a fast one")
        counts, self.example = dict.fromkeys(("rows", "texts", "truncated", "tokens", "unknown", "unreadable"), 0), None
        writer, progress = None, Progress(f"preparing {name}:", total, "rows")
        with pa.OSFile(str(self.folder / f"{name}.arrow"), "wb") as sink:
            while chunk := list(islice(rows, CHUNK)):
                table = self._table(chunk, texts, words, counts)
                writer = writer or pa.ipc.new_stream(sink, table.schema)
                writer.write_table(table)
                counts["rows"] += len(table)
                progress.at(counts["rows"])
            if writer:
                writer.close()
        if counts["rows"] == 0:
            raise InputError(f"no row is left for {name}; look at the data and at prepare in params.yaml")
        self.found.tokenized(name, counts, self.example, str(self.base_model))
        print(f"{name}: {counts['rows']} rows, {counts['truncated']} texts cut at {self.max_length} tokens", flush=True)

    def _table(self, chunk: list[dict], texts: tuple[str, ...], words: bool, counts: dict[str, int]):
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        table, unknown, special = {}, self.tokenizer.unk_token_id, self.tokenizer.num_special_tokens_to_add()
        for column in texts:
            strings = [e[column] for e in chunk]
            found = self.tokenizer(strings, truncation=False, return_attention_mask=False,
                                   return_token_type_ids=False, verbose=False)
            long = sum(len(i) > self.max_length for i in found["input_ids"])
            strange = [i.count(unknown) for i in found["input_ids"]]
            inner = [len(i) - special for i in found["input_ids"]]
            dark = [place for place, count in enumerate(inner) if 0 < count == strange[place]]
            for key, value in (("texts", len(strings)), ("truncated", long), ("unknown", sum(strange)),
                               ("tokens", sum(inner)), ("unreadable", len(dark))):
                counts[key] += value
            if self.example is None and any(strange):
                self.example = strings[dark[0] if dark else max(range(len(strange)), key=strange.__getitem__)]
            if long:
                found = self.tokenizer(strings, truncation=True, max_length=self.max_length)
            table[column] = pa.array(strings, pa.string())
            table[f"{column}_input_ids"] = pa.array(found["input_ids"], pa.list_(pa.int32()))
            if words:
                table[f"{column}_word_starts"] = pa.array([word_starts(e.word_ids) for e in found.encodings],
                                                          pa.list_(pa.int32()))
        if "label" in chunk[0]:
            values = [e["label"] for e in chunk]
            match values[0]:
                case int():
                    table["label"] = pa.array(values, pa.int64())
                case float():
                    table["label"] = pa.array(values, pa.float32())
                case _:
                    if len({len(v) for v in values}) > 1:
                        raise InputError("the teacher's vectors differ in length; embed all of them with one teacher")
                    table["label"] = pa.array(np.asarray(values, np.float32).tolist(), pa.list_(pa.float32()))
        for extra, kind in (("source", pa.string()), ("row", pa.int64())):
            if extra in chunk[0]:
                table[extra] = pa.array([e[extra] for e in chunk], kind)
        table = pa.table(table)
        if "row" in chunk[0]:       # of some sentences, of control characters alone, the tokenizer leaves nothing
            table = table.filter(pc.greater(pc.list_value_length(table[f"{texts[0]}_input_ids"]), special))
        return table

    def write_text(self, sentences: Iterator[dict], share: float, words: bool) -> None:
        """Numbers the sentences and writes them as train; a share of them is held out, evenly, until a chunk is full.

        No text stands in both: in place of one that train has, the next new one is held out, and later copies go.
        """
        due = 0
        kept, trained, copies = {}, set(), Counter()

        def numbered() -> Iterator[dict]:
            nonlocal due
            for number, row in enumerate(sentences):
                due += floor(round((number + 1) * share, 6)) - floor(round(number * share, 6))
                key, more = hash(decontamination.normal(row["text"])) if share else 0, len(kept) < CHUNK
                if key in kept:
                    self.found.overlap(HELD_OUT, "exact", 1.0, row["text"], kept[key]["text"])
                    copies[kept[key]["text"]] += 1
                elif due and more and key not in trained:
                    kept[key] = {**row, "row": -1 - number}
                    due -= 1
                else:
                    if more:
                        trained.add(key)
                    yield {**row, "row": number}

        self.write("train", ["text"], numbered(), words)
        if share:
            self.found.overlaps[f"train/{HELD_OUT}"] = {
                "dropped": copies.total(), "distinct": len(copies), "examples": [*copies][:decontamination.EXAMPLES]}
            if not kept:
                raise InputError(f"{self.found.written['train']['rows']} sentences are too few to hold out a share of "
                                 f"{share}; give more text, or set prepare.held_out to 0 and select by another metric")
            self.write(HELD_OUT, ["text"], kept.values(), words)

    def write_noised(self, noise) -> None:
        """noised.tsv: the first sentences and what the noise of seed 0, epoch 0 leaves of them."""
        import numpy as np

        from steps import batching

        if noise.kind == "mask" and self.tokenizer.mask_token_id is None:
            raise InputError(f"{self.base_model}: its tokenizer has no mask token; choose another prepare.noise.kind")
        rows = batching.load(self.folder / "train.arrow")
        rows = rows.select(range(min(NOISED, len(rows))))
        collator = batching.NoiseCollator(self.tokenizer, noise.kind, noise.ratio, 0, self.max_length)
        ids = [np.asarray(i) for i in rows["text_input_ids"][:]]
        damaged = collator.damage(ids, [np.asarray(w) for w in rows["text_word_starts"][:]],
                                  np.asarray(rows["row"][:]))
        lines = ["sentence\tnoised", *("\t".join(self.tokenizer.decode(i, skip_special_tokens=noise.kind != "mask")
                                                 for i in pair) for pair in zip(ids, damaged, strict=True))]
        (self.folder / "noised.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def word_starts(word_ids: list[int | None]) -> list[int]:
    """[None, 0, 0, 1, None] -> [1, 3, 4]: where each word begins among the tokens, and where the last ends."""
    places = [place for place, word in enumerate(word_ids) if word is not None]
    if not places:
        return []
    begins = [place for place in places if place == places[0] or word_ids[place] != word_ids[place - 1]]
    return [*begins, places[-1] + 1]
