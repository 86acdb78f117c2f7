"""A raw data set -> train, dev and test as Arrow files, validated and tokenized once.

python -m steps.prepare RECIPE FOLDER
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType

from steps import command, params, provenance, reading, recipes, splitting, tasks, vocabulary
from steps.schema import Columns, InputError, Recipe

SPLITS = ("train", "dev", "test")
SHOWN = 10          # problems named before the rest is only counted
CHUNK = 10_000      # rows tokenized and written together
NOISED = 50         # sentences with their noise that people can read
HELD_OUT = "held_out"


def main(arguments: Sequence[str]) -> None:
    recipe, folder = arguments
    provenance.check_environment()
    prepare(recipes.get(recipe), params.load().recipe(recipe), Path(folder))


def prepare(recipe: ModuleType, settings: Recipe, folder: Path) -> None:
    """Writes {train,dev,test}.arrow, tasks/NAME.arrow for the recipe's tasks and summary.json, all or nothing.

    An Arrow file has the text columns, for each NAME of them NAME_input_ids (token ids with special tokens, cut at
    max_length), and `label` and `source` where there are such; text for noise also NAME_word_starts and `row`.
    Raises InputError naming file, line and value of bad rows.
    """
    dataset, suite, base_model = Path(settings.dataset), Path(settings.suite), Path(settings.base_model)
    if hasattr(recipe, "check"):
        recipe.check(base_model)
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "tasks").mkdir(parents=True)
    try:
        writer = Writer(base_model, settings.prepare.max_length, partial)
        files = reading.splits(dataset)
        if "train" not in files:
            raise InputError(f"{dataset} has no train file; declare it under splits in params.yaml")
        if getattr(recipe, "UNLABELLED", False):
            sentences = islice(train_rows(recipe, settings.prepare, files["train"]), settings.prepare.limit)
            share = settings.prepare.held_out
            writer.write_text(sentences, share, getattr(recipe, "WORDS", False))
            first = next(iter(settings.tasks.values()))
            for split, name in (("dev", first.dev), ("test", first.test)):
                writer.write(split, recipe.TASK.TEXTS, task_rows(first, suite, name))
        else:
            for split, rows in labelled(recipe, settings.prepare, dataset, files).items():
                names = recipes.texts(recipe, settings.prepare) if split == "train" else recipe.TASK.TEXTS
                writer.write(split, names, rows)
        for name, entry in recipes.further_tasks(recipe, settings).items():
            writer.write(f"tasks/{name}", tasks.get(entry.task).TEXTS, task_rows(entry, suite, entry.test))
        if noise := getattr(settings.prepare, "noise", None):
            writer.write_noised(noise)
        source = json.loads((dataset / "source.json").read_text(encoding="utf-8"))
        summary = {"source": source, "splits": writer.rows}
        (partial / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def labelled(recipe: ModuleType, settings, dataset: Path, files: Mapping[str, list[Path]]) -> dict[str, list[dict]]:
    """The rows of train, dev and test; a missing dev or test is taken from train, whole groups of equal texts."""
    task = recipe.TASK
    held_out = getattr(recipe, "held_out", task.example)
    splits = {"train": list(islice(train_rows(recipe, settings, files["train"]), settings.limit))}
    for split in SPLITS[1:]:
        if split in files:
            splits[split] = list(valid(files[split], settings.columns, settings.header,
                                       lambda row: [held_out(row, settings)]))
    if missing := [s for s in ("test", "dev") if s not in splits]:
        if recipes.texts(recipe, settings) != task.TEXTS:
            raise InputError(f"{dataset} has no {missing[0]} file, and train's rows are not of its kind; declare it "
                             "under splits in params.yaml")
        splits = splitting.split_off(splits, task.TEXTS, missing, settings.split)
    if settings.subset:
        splits = splitting.subset(splits, settings.subset)
    for split, found in splits.items():
        if len(found) < 2:
            raise InputError(f"{dataset}: the {split} split has {len(found)} rows; a metric needs at least 2: "
                             "give the data set more rows, or change prepare.split in params.yaml")
    return {s: splits[s] for s in SPLITS}


def train_rows(recipe: ModuleType, settings, files: list[Path]) -> Iterator[dict]:
    """Every row of train's files as the recipe's examples, one after the other."""
    columns = recipe.columns(settings) if hasattr(recipe, "columns") else settings.columns
    return valid(files, columns, settings.header, lambda row: recipes.examples(recipe, row, settings))


def task_rows(entry, suite: Path, split: str) -> list[dict]:
    files = reading.splits(suite)
    if split not in files:
        raise InputError(f"{suite} has no split {split!r}, which tasks in params.yaml ask for; it has "
                         f"{', '.join(files)}: declare it under splits")
    task = tasks.get(entry.task)
    found = list(valid(files[split], entry.columns, entry.header, lambda row: [task.example(row, entry)]))
    if len(found) < 2:
        raise InputError(f"{files[split][0]} has {len(found)} rows; a metric needs at least 2")
    return found


def valid(files: list[Path], columns: Columns, header: list[str] | None, examples) -> Iterator[dict]:
    """The examples of every row; the bad rows are named together, after the last."""
    problems, any_row = [], False
    for path in files:
        for line, row in reading.rows(path, columns.wanted(), header):
            any_row = True
            try:
                found = examples(row)
            except ValueError as error:
                problems.append(f"{path}:{line}: {error}")
            else:
                if not problems:
                    yield from found
    if problems:
        more = [f"and {len(problems) - SHOWN} more rows"] if len(problems) > SHOWN else []
        raise InputError("\n".join(problems[:SHOWN] + more))
    if not any_row:
        raise InputError(f"{files[0]} has no rows" + ("" if header else " below its header"))


class Writer:
    """Tokenizes rows and writes them as Arrow streams into a folder, a chunk at a time."""

    def __init__(self, base_model: Path, max_length: int, folder: Path):
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base_model, local_files_only=True)
        if self.tokenizer.pad_token_id is None:
            raise InputError(f"{base_model}: its tokenizer has no padding token; choose an encoder that has one")
        vocabulary.check(base_model, self.tokenizer)
        self.max_length, self.folder = max_length, folder
        self.rows: dict[str, dict[str, int]] = {}

    def write(self, name: str, texts: Iterable[str], rows: Iterable[dict], words: bool = False) -> None:
        """Writes rows to NAME.arrow and counts rows and cut texts under NAME."""
        import pyarrow as pa

        rows, texts = iter(rows), tuple(texts)
        count = cut = 0
        writer = None
        with pa.OSFile(str(self.folder / f"{name}.arrow"), "wb") as sink:
            while chunk := list(islice(rows, CHUNK)):
                table, shortened = self._table(chunk, texts, words)
                writer = writer or pa.ipc.new_stream(sink, table.schema)
                writer.write_table(table)
                count, cut = count + len(table), cut + shortened
            if writer:
                writer.close()
        if count == 0:
            raise InputError(f"no row is left for {name}; look at the data and at prepare in params.yaml")
        self.rows[name] = {"rows": count, "truncated": cut}
        print(f"{name}: {count} rows, {cut} texts cut at {self.max_length} tokens", flush=True)

    def _table(self, chunk: list[dict], texts: tuple[str, ...], words: bool):
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        table, cut = {}, 0
        for column in texts:
            strings = [e[column] for e in chunk]
            found = self.tokenizer(strings, truncation=False, return_attention_mask=False,
                                   return_token_type_ids=False, verbose=False)
            long = sum(len(i) > self.max_length for i in found["input_ids"])
            cut += long
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
            special = self.tokenizer.num_special_tokens_to_add()
            table = table.filter(pc.greater(pc.list_value_length(table[f"{texts[0]}_input_ids"]), special))
        return table, cut

    def write_text(self, sentences: Iterator[dict], share: float, words: bool) -> None:
        """Numbers the sentences and writes them as train; of every 1 / share one is held out, until a chunk is full."""
        every = round(1 / share) if share else 0
        kept: list[dict] = []

        def numbered() -> Iterator[dict]:
            for number, row in enumerate(sentences):
                if every and number % every == every - 1 and len(kept) < CHUNK:
                    kept.append({**row, "row": -1 - number})
                else:
                    yield {**row, "row": number}

        self.write("train", ["text"], numbered(), words)
        if every:
            if not kept:
                raise InputError(f"{self.rows['train']['rows']} sentences are too few to hold out a share of {share}; "
                                 "give more text or set prepare.held_out to 0")
            self.write(HELD_OUT, ["text"], kept, words)

    def write_noised(self, noise) -> None:
        """noised.tsv: the first sentences and what the noise of seed 0, epoch 0 leaves of them."""
        import numpy as np

        from steps import batching

        rows = batching.load(self.folder / "train.arrow")
        rows = rows.select(range(min(NOISED, len(rows))))
        collator = batching.NoiseCollator(self.tokenizer, noise.kind, noise.ratio, seed=0)
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


if __name__ == "__main__":
    command.main(main)
