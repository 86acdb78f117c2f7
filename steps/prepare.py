"""A raw data set -> train, dev and test as Arrow files, validated and tokenized once.

python -m steps.prepare RECIPE FOLDER
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType

from steps import command, contract, decontamination, params, provenance, reading, recipes, splitting, tasks, vocabulary
from steps.contract import Findings
from steps.schema import InputError, Recipe

SPLITS = ("train", "dev", "test")
CHUNK = 10_000      # rows tokenized and written together
NOISED = 50         # sentences with their noise that people can read
HELD_OUT = "held_out"
REFUSED = Path(".evergreen/refused")     # the lists of data that were not good enough
Files = Mapping[str, list[Path]]        # those of each split


def main(arguments: Sequence[str]) -> None:
    recipe, folder = arguments
    provenance.check_environment()
    prepare(recipes.get(recipe), params.load().recipe(recipe), Path(folder))


def prepare(recipe: ModuleType, settings: Recipe, folder: Path) -> None:
    """Writes {train,dev,test}.arrow, tasks/NAME.arrow for the recipe's tasks and summary.json, all or nothing.

    An Arrow file has the text columns, for each NAME of them NAME_input_ids (token ids with special tokens, cut at
    max_length), and `label` and `source` where there are such; text for noise also NAME_word_starts and `row`.
    report.json counts what was found in the data, quarantine.csv and overlaps.csv list what was left out and why.
    Raises InputError naming file, line and value of bad rows, where they are more than the contract allows, and every
    other reason not to train on the data; the lists are then in REFUSED.
    """
    dataset, refused = Path(settings.dataset), REFUSED / folder.name
    shutil.rmtree(refused, ignore_errors=True)
    with command.whole(folder) as partial:
        found = fill(recipe, settings, partial, reading.splits(dataset), reading.splits(Path(settings.suite)))
        source = json.loads((dataset / "source.json").read_text(encoding="utf-8"))
        found.stops += contract.unlicensed(settings.dataset, source.get("licence"), settings.contract)
        if found.stops and (lists := found.keep_lists(refused)):
            found.stops.append(f"every row that was left out: {lists}")
        found.refuse()
        for line in found.said():
            print(f"{line}; see {folder}/report.json and the lists beside it", flush=True)
        splits = {split: {key: counts[key] for key in ("rows", "truncated")} for split, counts in found.written.items()}
        for name, values in (("summary", {"source": source, "splits": splits}), ("report", found.report())):
            (partial / f"{name}.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n",
                                                  encoding="utf-8")


def fill(recipe: ModuleType, settings: Recipe, folder: Path, files: Files, suite: Files) -> Findings:
    """Reads, checks and writes all rows; what speaks against training on them is among the findings' `stops`."""
    (folder / "tasks").mkdir(parents=True)
    found = Findings(settings.contract, folder)
    try:
        base_model = Path(settings.base_model)
        vocabulary.check_length(f"recipes.{recipe.__name__.rpartition('.')[2]}.prepare.max_length",
                                settings.prepare.max_length, base_model)
        if hasattr(recipe, "check"):
            recipe.check(base_model)
        if "train" not in files:
            raise InputError(f"{settings.dataset} has no train file; declare it under splits in params.yaml")
        _fill(recipe, settings, Writer(base_model, settings.prepare.max_length, folder, found), files, suite)
    except InputError as error:
        found.stops += str(error).splitlines()
    return found


def _fill(recipe: ModuleType, settings: Recipe, writer: "Writer", files: Files, suite: Files) -> None:
    found, names, unlabelled = writer.found, recipes.texts(recipe, settings.prepare), recipes.unlabelled(recipe)
    if unlabelled:
        first = next(iter(settings.tasks.values()))
        held = {split: (recipe.TASK, first, task_rows(first, settings, suite, name, split, found))
                for split, name in (("dev", first.dev), ("test", first.test))}
        train = islice(train_rows(recipe, settings, files["train"], found), settings.prepare.limit)
    else:
        splits = labelled(recipe, settings, files, found)
        held = {split: (recipe.TASK, settings.prepare, splits[split]) for split in SPLITS[1:]}
        train = splits["train"]
        found.distribution("train", [e.get("label") for e in train], recipes.labels(recipe, settings.prepare))
        found.repeats["train"] = decontamination.repeats(train, names)
    for name, entry in recipes.further_tasks(recipe, settings).items():
        split = f"tasks/{name}"
        held[split] = (tasks.get(entry.task), entry, task_rows(entry, settings, suite, entry.test, split, found))
    evaluation = decontamination.Evaluation(settings.contract, found)
    for split, (task, entry, rows) in held.items():
        found.distribution(split, [e.get("label") for e in rows], getattr(entry, "labels", ()))
        found.repeats[split] = decontamination.repeats(rows, task.TEXTS)
        evaluation.add(split, rows, task.TEXTS, single=1 in (len(names), len(task.TEXTS)))
    train = evaluation.without(train, names)
    if unlabelled:
        writer.write_text(train, settings.prepare.held_out, getattr(recipe, "WORDS", False))
        found.settle("train")
    else:
        writer.write("train", names, train)
    if (count := found.written["train"]["rows"]) < settings.contract.min_rows:
        found.stops.append(f"train has {count} rows, fewer than contract.min_rows ({settings.contract.min_rows})")
    for split, (task, _, rows) in held.items():
        writer.write(split, task.TEXTS, rows)
    if noise := getattr(settings.prepare, "noise", None):
        writer.write_noised(noise)


def labelled(recipe: ModuleType, settings: Recipe, files: Files, found: Findings) -> dict[str, list[dict]]:
    """The rows of train, dev and test; a missing dev or test is taken from train, whole groups of equal texts."""
    task, prepare = recipe.TASK, settings.prepare
    held_out = getattr(recipe, "held_out", task.example)
    splits = {"train": list(islice(train_rows(recipe, settings, files["train"], found), prepare.limit))}
    found.settle("train")
    rules = contract.rules(prepare.columns, task.TEXTS, prepare, getattr(prepare, "labels", ()), settings.contract)
    for split in SPLITS[1:]:
        if split in files:
            splits[split] = [held_out(row, prepare) for row in contract.rows(
                files[split], split, prepare.columns, prepare.header, rules, found)]
            found.settle(split)
    if missing := [s for s in ("test", "dev") if s not in splits]:
        if recipes.texts(recipe, prepare) != task.TEXTS:
            raise InputError(f"{settings.dataset} has no {missing[0]} file, and train's rows are not of its kind; "
                             "declare it under splits in params.yaml")
        splits = splitting.split_off(splits, task.TEXTS, missing, prepare.split)
    if prepare.subset:
        splits = splitting.subset(splits, prepare.subset)
    for split, rows in splits.items():
        if len(rows) < 2:
            raise InputError(f"{settings.dataset}: the {split} split has {len(rows)} rows; a metric needs at least 2: "
                             "give the data set more rows, or change prepare.split in params.yaml")
    return {s: splits[s] for s in SPLITS}


def train_rows(recipe: ModuleType, settings: Recipe, files: list[Path], found: Findings) -> Iterator[dict]:
    """Every good row of train's files as the recipe's examples, one after the other."""
    columns, prepare = recipes.columns(recipe, settings.prepare), settings.prepare
    rules = contract.rules(columns, recipes.texts(recipe, prepare), prepare, recipes.labels(recipe, prepare),
                           settings.contract, documents=recipes.unlabelled(recipe))
    for row in contract.rows(files, "train", columns, prepare.header, rules, found):
        yield from recipes.examples(recipe, row, prepare)


def task_rows(entry, settings: Recipe, suite: Files, name: str, split: str, found: Findings) -> list[dict]:
    """The good rows of the suite's split `name`, which is the recipe's `split`."""
    if name not in suite:
        raise InputError(f"{settings.suite} has no split {name!r}, which tasks in params.yaml ask for; it has "
                         f"{', '.join(suite)}: declare it under splits")
    task = tasks.get(entry.task)
    rules = contract.rules(entry.columns, task.TEXTS, entry, getattr(entry, "labels", ()), settings.contract)
    rows = [task.example(row, entry) for row in contract.rows(
        suite[name], split, entry.columns, entry.header, rules, found)]
    found.settle(split)
    if len(rows) < 2:
        raise InputError(f"{suite[name][0]} has {len(rows)} good rows; a metric needs at least 2")
    return rows


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

        rows, texts = iter(rows), tuple(texts)
        if words and not self.tokenizer.is_fast:
            raise InputError(f"{self.base_model}: its tokenizer does not say where words begin; choose a fast one")
        counts, self.example = dict.fromkeys(("rows", "texts", "truncated", "tokens", "unknown", "unreadable"), 0), None
        writer = None
        with pa.OSFile(str(self.folder / f"{name}.arrow"), "wb") as sink:
            while chunk := list(islice(rows, CHUNK)):
                table = self._table(chunk, texts, words, counts)
                writer = writer or pa.ipc.new_stream(sink, table.schema)
                writer.write_table(table)
                counts["rows"] += len(table)
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
        """Numbers the sentences and writes them as train; of every 1 / share one is held out, until a chunk is full.

        No text stands in both: in place of one that train has, the next new one is held out, and later copies go.
        """
        every, due = round(1 / share) if share else 0, 0
        kept, trained, copies = {}, set(), Counter()

        def numbered() -> Iterator[dict]:
            nonlocal due
            for number, row in enumerate(sentences):
                due += bool(every) and number % every == every - 1
                key, more = hash(decontamination.normal(row["text"])) if every else 0, len(kept) < CHUNK
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
        if every:
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
