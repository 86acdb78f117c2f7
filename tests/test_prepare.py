"""Data sets, good and bad -> prepared splits, or an error that names file, line and value."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from steps import params, prepare, provenance, recipes
from steps.schema import InputError, Recipe
from tests.conftest import LENIENT, findings
from tests.project import ROOT, sample, write_rows

HEADER = "sentence1,sentence2,score\n"
TRIPLETS = "anchor,positive,negative\n"


@pytest.fixture
def place(tmp_path, tiny_model, monkeypatch) -> Path:
    """A folder with a base model `tiny` and an empty data set `raw`, in which steps run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/source.json").write_text('{"name": "tests"}', encoding="utf-8")
    return tmp_path


def write(place: Path, **files: str) -> None:
    for name, content in files.items():
        (place / f"raw/{name}.csv").write_text(content, encoding="utf-8")


def asked(recipe: str, tasks: dict | None = None, dataset: str = "raw", **changes) -> Recipe:
    """The recipe of params.yaml on the data set `raw`, with other values under `prepare`."""
    values = params.read(ROOT / "params.yaml")["recipes"][recipe]
    values |= {"dataset": dataset, "base_model": "tiny", "suite": "raw", "tasks": tasks or {}}
    values["contract"] |= LENIENT
    values["gate"]["guards"] = {}
    values["prepare"] |= changes
    return recipes.get(recipe).Params.model_validate(values)


def rows(recipe: str, *files: Path, **changes) -> list[dict]:
    """What prepare makes of the files of a train split, none of whose rows may be bad."""
    return train_rows(recipe, asked(recipe, **changes), *files)


def train_rows(recipe: str, settings: Recipe, *files: Path) -> list[dict]:
    found = findings(files[0].parent)
    made = list(prepare.train_rows(recipes.get(recipe), settings, list(files), found))
    found.settle("train")
    found.refuse()
    return made


def refusal(recipe: str, path: Path, **changes) -> str:
    """What a bad file is answered with, less the path it must begin with."""
    with pytest.raises(InputError) as caught:
        rows(recipe, path, **changes)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def table(path: Path) -> dict[str, list]:
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_stream(source).read_all().to_pydict()


def declare(place: Path, recipe: str, **changes) -> None:
    """A params.yaml with the one recipe on data/raw/mine, and what a step needs besides."""
    for lock in provenance.LOCKS:
        (place / lock).write_bytes((ROOT / lock).read_bytes())
    values = params.read(ROOT / "params.yaml") | {"published": {}, "teachers": {}, "references": {}}
    source = {"path": "elsewhere", "licence": "MIT"}
    values["datasets"] = {"local": {"mine": source | {"splits": {"train": "train.csv"}}}}
    values["base_models"] = {"local": {"tiny": source}}
    entry = values["recipes"][recipe]
    entry |= {"dataset": "data/raw/mine", "suite": "data/raw/mine", "base_model": "models/base/tiny"}
    entry["contract"] |= LENIENT
    entry["prepare"] |= changes
    YAML(typ="safe", pure=True).dump(values | {"recipes": {recipe: entry}}, place / "params.yaml")
    for path, target in (("data/raw/mine", "raw"), ("models/base/tiny", "tiny")):
        (place / path).parent.mkdir(parents=True)
        (place / path).symlink_to(place / target)


def step(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "steps.prepare", *arguments], capture_output=True, text=True,
                          env=environment | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}, check=False)


# What is refused


@pytest.mark.parametrize("row, said", [
    ("a,b,good", "score = 'good' is not a number"),
    ("a,b,", "score = '' is not a number"),
    ('a,b,"3,5"', "score = '3,5' is not a number"),
    ("a,b,inf", "score = 'inf' is not a number"),
    ("a,b,-Infinity", "score = '-Infinity' is not a number"),
    ("a,b,nan", "score = 'nan' is not a number"),
    ("a,b,5.01", "score = '5.01' is outside 0 to 5"),
    ("a,b,-1", "score = '-1' is outside 0 to 5"),
    (",b,3", "sentence1 = '' is empty; write the text or remove the row"),
    ('a," \t",3', "sentence2 = ' \\t' is empty"),
    ('"one\ntwo",b,6', "score = '6'"),
])
@pytest.mark.parametrize("before, line", [
    ("a,b,1\n", 3),
    ('"one\ntwo\nthree",b,1\n', 5),         # the row before stands on lines 2 to 4
    ("a,b,1\r\n\r\n", 4),                   # an empty line is no row, and still a line
])
def test_a_bad_row_is_named_by_line_and_value(tmp_path, row, said, before, line):
    path = tmp_path / "train.csv"
    path.write_bytes(f"{HEADER}{before}{row}\na,b,2\n".encode())
    assert refusal("sts", path).startswith(f":{line}: {said}")


@pytest.mark.parametrize("recipe, content, said", [
    ("cola", "sentence,label,kind\nI went.,1,x\nI goed.,wrong,x\n",
     ":3: label = 'wrong' is not a label of the schema; labels are unacceptable, acceptable, or their places 0 to 1"),
    ("emotion", "text,label\noh,joy\nwell,6\n", ":3: label = '6' is not a label of the schema; labels are sadness, "
                                                "joy, love, anger, fear, surprise, or their places 0 to 5"),
    ("nli", TRIPLETS + "a,b,c\na, ,c\n", ":3: positive = ' ' is empty; write the text or remove the row"),
    ("nli", TRIPLETS + "a,b,c\n,b,c\n", ":3: anchor = '' is empty"),
    ("nli", TRIPLETS + "a,b,b\n", ":2: negative = 'b' is the text of positive too; remove the row"),
    ("nli", "premise,hypothesis,label\na,b,0\n", ": column 'anchor' is missing; the file has 'premise', 'hypothesis', "
                                                 "'label'; name the right one (columns in params.yaml"),
    ("sts", HEADER, " has no rows below its header"),
])
def test_what_a_recipe_cannot_learn_from_is_named(tmp_path, recipe, content, said):
    (path := tmp_path / "train.csv").write_text(content, encoding="utf-8")
    assert refusal(recipe, path).startswith(said)


def test_a_pair_with_an_unknown_label_is_named(place):
    write(place, train="premise,hypothesis,label\na,b,entailment\nc,d,-1\n")
    wanted = asked("nli")
    wanted = wanted.model_copy(update={"prepare": wanted.prepare.model_copy(update={"train_rows": "pairs"})})
    with pytest.raises(InputError) as caught:
        train_rows("nli", wanted, Path("raw/train.csv"))
    assert str(caught.value).startswith("raw/train.csv:3: label = '-1' is not a label of the schema; labels are "
                                        "entailment, neutral, contradiction, or their places 0 to 2\n")


def test_ten_bad_rows_of_all_files_are_named_and_the_rest_counted(place):
    write(place, a=HEADER + "a,b,6\n" * 8, b=HEADER + "a,b,6\n" * 5)
    with pytest.raises(InputError) as caught:
        rows("sts", Path("raw/a.csv"), Path("raw/b.csv"))
    *lines, more, last = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        *(f"raw/a.csv:{n}" for n in range(2, 10)), "raw/b.csv:2", "raw/b.csv:3"]
    assert more == "and 3 more rows"
    assert last == ("train: 13 of 13 rows are bad, more than the allowed 1.0% (contract.bad_rows); correct them or "
                    "allow more")


@pytest.mark.parametrize("files, said", [
    ({"dev": HEADER + "a,b,1\n"}, "raw has no train file; declare it under splits in params.yaml"),
    ({"train": HEADER + "a,b,1\nc,d,2\n", "dev": HEADER + "e,f,1\n", "test": HEADER + "e,f,1\ng,h,2\n"},
     "raw: the dev split has 1 rows; a metric needs at least 2"),
])
def test_a_data_set_without_enough_is_refused_and_leaves_no_folder(place, files, said):
    write(place, **files)
    with pytest.raises(InputError, match=said):
        prepare.prepare(recipes.get("sts"), asked("sts"), Path("prepared/sts"))
    assert list(place.glob("prepared/*")) == []


def test_a_prepare_that_fails_when_all_but_done_leaves_no_folder(place):
    two = HEADER + "a,b,1\nc,d,2\n"
    write(place, train=two, dev=two, test=two)
    (place / "raw/source.json").unlink()
    with pytest.raises(FileNotFoundError):
        prepare.prepare(recipes.get("sts"), asked("sts"), Path("prepared/sts"))
    assert list(place.glob("prepared/*")) == []


def test_triplets_cannot_be_taken_from_a_train_file_of_pairs(place):
    write(place, train="premise,hypothesis,label\na,b,0\nc,d,1\n", test=TRIPLETS + "a,b,c\nd,e,f\n")
    values = params.read(ROOT / "params.yaml")["recipes"]["nli"] | {"dataset": "raw", "suite": "raw", "tasks": {}}
    values["train"]["loss"], values["prepare"]["train_rows"] = "softmax", "pairs"
    values["gate"]["guards"] = {}
    wanted = recipes.get("nli").Params.model_validate(values | {"base_model": "tiny"})
    with pytest.raises(InputError, match="raw has no dev file, and train's rows are not of its kind; declare it"):
        prepare.prepare(recipes.get("nli"), wanted, Path("prepared/nli"))


def test_a_task_of_a_split_the_suite_lacks_is_refused_with_those_it_has(place):
    two = HEADER + "a,b,1\nc,d,2\n"
    write(place, train=two, dev=two, test=two)
    entry = {"task": "sts", "test": "sts_de", "columns": {"sentence1": "a", "sentence2": "b", "score": "c"},
             "score_range": [0.0, 5.0]}
    with pytest.raises(InputError, match=r"raw has no split 'sts_de', which .* ask for; it has dev, test, train: "):
        prepare.prepare(recipes.get("sts"), asked("sts", {"german": entry}), Path("prepared/sts"))


def test_a_bad_data_set_ends_the_step_with_status_2_and_no_folder(place, environment):
    write(place, train=HEADER + "a,b,7\n", dev=HEADER + "a,b,1\n", test=HEADER + "c,d,1\n")
    declare(place, "sts")
    done = step(environment, "sts", "data/prepared/sts")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: data/raw/mine/train.csv:2: score = '7' is outside 0 to 5 (score_range)\n"
                                  "error: train: 1 of 1 rows are bad, more than the allowed 1.0% (contract.bad_rows)")
    assert "Traceback" not in done.stderr
    assert list(Path().glob("data/prepared/*")) == []


# What is read


def test_scores_are_scaled_from_their_range_to_0_to_1(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("score,sentence2,more,sentence1\n0,b,x,a\n2.5,b,x,a\n5,b,x,a\n", encoding="utf-8")
    assert rows("sts", path) == [{"sentence1": "a", "sentence2": "b", "label": label} for label in (0.0, 0.5, 1.0)]


def test_the_files_of_a_split_are_read_one_after_the_other(place):
    write(place, train_a="text,label\none,joy\n", train_b="text,label\ntwo,1\nthree,fear\n")
    assert rows("emotion", Path("raw/train_b.csv"), Path("raw/train_a.csv")) == [
        {"text": "two", "label": 1}, {"text": "three", "label": 4}, {"text": "one", "label": 1}]


def test_cola_is_read_as_it_is_published(tmp_path):
    """Four columns without a header: where from, the label, the author's own mark, the sentence."""
    path = tmp_path / "train.tsv"
    path.write_text("gj04\t1\t\tOur friends won't buy this.\nks08\t0\t*\tThey made him to leave.\n", encoding="utf-8")
    columns = {"text": "sentence", "label": "label", "source": "from"}
    assert rows("cola", path, header=["from", "label", "mark", "sentence"], columns=columns) == [
        {"text": "Our friends won't buy this.", "source": "gj04", "label": 1},
        {"text": "They made him to leave.", "source": "ks08", "label": 0}]


def test_a_limit_ends_reading_before_a_bad_row(place):
    """Of all the rows the seventh is bad; with a limit of 5 it is never read."""
    dev, test = HEADER + "x,y,1\nz,w,2\n", HEADER + "s,t,1\nu,v,2\n"
    write(place, train=HEADER + "".join(f"a{n},b{n},{n % 5}\n" for n in range(6)) + "c,d,9\n", dev=dev, test=test)
    prepare.prepare(recipes.get("sts"), asked("sts", limit=5), Path("prepared"))
    assert table(place / "prepared/train.arrow")["sentence1"] == [f"a{n}" for n in range(5)]
    with pytest.raises(InputError, match=":8: score = '9' is outside"):
        prepare.prepare(recipes.get("sts"), asked("sts", limit=None), Path("prepared"))


# What is written


def test_the_recipes_further_tasks_are_written_beside_its_splits(place):
    write(place, train=TRIPLETS + "".join(f"a{n},b{n},c{n}\n" for n in range(20)),
          sts_de=HEADER + "a,b,5\nc,d,0\n")
    entry = {"task": "sts", "test": "sts_de", "columns": {n: n for n in ("sentence1", "sentence2", "score")},
             "score_range": [0.0, 5.0]}
    prepare.prepare(recipes.get("nli"), asked("nli", {"german": entry}), Path("prepared"))
    assert table(place / "prepared/tasks/german.arrow")["label"] == [1.0, 0.0]
    splits = json.loads((place / "prepared/summary.json").read_text())["splits"]
    assert splits["tasks/german"] == {"rows": 2, "truncated": 0}


@pytest.mark.parametrize("recipe", ["sts", "tsdae"])
def test_another_process_prepares_the_same_bytes(place, environment, capsys, recipe):
    """Texts as keys, missing splits drawn at random and noise: none may let the process show."""
    write_rows(place / "raw/train.csv", sample("train", 60))
    if recipe == "tsdae":
        for split in ("dev", "test"):
            write_rows(place / f"raw/{split}.csv", sample(split, 20))
    declare(place, recipe, **({"columns": {"text": "sentence1"}} if recipe == "tsdae" else {}))
    assert step(environment, recipe, "theirs").returncode == 0
    prepare.main([recipe, "ours"])
    ours, theirs = ({p.name: p.read_bytes() for p in (place / who).iterdir() if p.is_file()}
                    for who in ("ours", "theirs"))
    assert set(ours) == {"train.arrow", "dev.arrow", "test.arrow", "summary.json", "report.json"} | (
        {"held_out.arrow", "noised.tsv", "overlaps.csv"} if recipe == "tsdae" else set())     # some stand there twice
    assert ours == theirs


def taught(place: Path, *vectors: list[float]) -> Recipe:
    """A recipe on translations with a teacher's vectors."""
    (place / "data/taught").mkdir(parents=True)
    (place / "data/taught/raw").symlink_to(place / "raw")
    for split in prepare.SPLITS:
        pairs = [(f"{split} one {n}", f"{split} eins {n}", vector) for n, vector in enumerate(vectors)]
        pq.write_table(pa.table(dict(zip(("english", "non_english", "vector"), zip(*pairs, strict=True), strict=True))),
                       place / f"raw/{split}.parquet")
    return asked("multilingual", dataset="data/taught/raw")


def test_the_teachers_vectors_are_the_labels(place):
    prepare.prepare(recipes.get("multilingual"), taught(place, [0.5, 1.0], [2.0, -1.0]), Path("prepared"))
    for split in prepare.SPLITS:
        assert table(place / f"prepared/{split}.arrow")["label"] == [[0.5, 1.0], [2.0, -1.0]]


def test_vectors_of_two_lengths_are_refused(place):
    with pytest.raises(InputError, match="the teacher's vectors differ in length; embed all of them with one teacher"):
        prepare.prepare(recipes.get("multilingual"), taught(place, [0.5, 1.0], [2.0]), Path("prepared"))
