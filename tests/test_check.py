"""`evergreen check RECIPE` says what is in the data and what would stop a run, and writes nothing but its report."""

import hashlib
import shutil
from pathlib import Path

import pytest

from steps import params
from tests.hub_server import HubServer
from tests.project import ROOT, Project, digests, sample, write_rows

TRAIN = "samples/appliances/train.csv"


@pytest.fixture
def checked(project, inside) -> Project:
    """A project in which nothing ran, and in which this test works."""
    project.edit("recipes.sts.contract.unknown", 0.4)
    inside(project)
    return project


def append(project: Project, *rows: str, file: str = TRAIN) -> None:
    with open(project / file, "a", encoding="utf-8") as end:
        end.writelines(f"{row}\n" for row in rows)


def everything(project: Project) -> set[str]:
    return {p.relative_to(project.folder).as_posix() for p in project.folder.rglob("*") if p.is_file()
            and ".git/" not in str(p) and "__pycache__" not in str(p)}


def test_good_data_pass_and_only_the_report_is_written(checked, evergreen):
    before = everything(checked)
    done = evergreen("check", "sts")
    assert done.code == 0, done.out + done.err
    assert done.out.splitlines()[-1] == "nothing here stops a run; train with: evergreen run sts"
    assert everything(checked) - before == {".evergreen/check/sts/report.txt"}
    assert Path(".evergreen/check/sts/report.txt").read_text(encoding="utf-8") == done.out
    rows = {line.split()[0]: line.split()[1:4] for line in done.out.splitlines()[3:6]}
    assert rows == {"train": ["48", "0", "48"], "dev": ["16", "0", "16"], "test": ["24", "0", "24"]}


def test_a_page_names_all_that_stops_a_run_and_the_files_where_they_lie(checked, evergreen):
    test = sample("test", 24)
    append(checked, "a,b,9", ",b,3", *(",".join(f'"{value}"' for value in row) for row in test[1:4]))
    done = evergreen("check", "sts")
    assert (done.code, done.err) == (2, "")
    for rule in ("score is outside 0 to 5 (score_range)", "sentence1 is empty; write the text or remove the row"):
        assert f"  train: 1 rows quarantined: {rule}\n" in done.out
    for problem in (f"{TRAIN}:50: score = '9' is outside", f"{TRAIN}:51: sentence1 = '' is empty"):
        assert f"\n    {problem}" in done.out
    assert "3 examples of train stand in test too (3 letter for letter); 3 rows dropped from train" in done.out
    stops = done.out.partition("a run would stop:\n")[2]
    assert "train: 2 of 53 rows are bad" in stops and "12.5% of test stands in train too" in stops
    assert sorted(p.name for p in Path(".evergreen/check/sts").iterdir()) == [
        "overlaps.csv", "quarantine.csv", "report.txt"]


def test_a_file_that_cannot_be_read_is_one_more_reason(checked, evergreen):
    shutil.copy(checked / TRAIN, checked / "whole.csv")
    append(checked, '"never closed,b,3')
    done = evergreen("check", "sts")
    assert done.code == 2 and f"{TRAIN}:50: unexpected end of data" in done.out.partition("would stop:")[2]


def test_a_link_out_of_the_data_set_is_not_read(checked, evergreen):
    (checked / TRAIN).rename(checked / "elsewhere.csv")
    (checked / TRAIN).symlink_to(checked / "elsewhere.csv")
    done = evergreen("check", "sts")
    assert done.code == 2 and f"appliances: {TRAIN} links to {checked / 'elsewhere.csv'}, outside" in done.err
    assert not Path(".evergreen/check/sts").exists()


def test_a_file_that_is_not_the_one_of_its_sha256_is_refused(checked, evergreen):
    checked.edit("datasets.local.appliances.sha256", {"train.csv": "0" * 64})
    done = evergreen("check", "sts")
    assert done.code == 2 and "appliances: train.csv has sha256 " in done.err and "cut or changed" in done.err


def test_a_licence_that_is_not_allowed_and_near_duplicates_are_shown(checked, evergreen):
    checked.edit("recipes.sts.contract.licences", ["MIT"])
    one, other, _ = sample("test", 24)[6]
    append(checked, f'"{one} now","{other}",3')
    said = evergreen("check", "sts").out
    assert "the licence 'Apache-2.0' of data/raw/appliances is not one of contract.licences: MIT" in said
    assert "1 rows of train are nearly alike with test, kept; contract.near_duplicates: drop leaves them out" in said


def test_check_sees_the_data_as_they_are_now_and_prepare_as_they_were_imported(finished, tmp_path, inside, evergreen):
    project = Project(shutil.copytree(finished.folder, tmp_path / "project", symlinks=True), finished.environment)
    inside(project)
    before = digests(project.folder)
    append(project, "a,b,9")
    assert evergreen("check", "sts").code == 2
    assert digests(project.folder) == before


def test_prepare_writes_the_same_lists_beside_the_data(checked):
    """Of 203 rows one bad one and one of dev are left out, one has another score than before; the run says so."""
    first, _ = sample("train", 200)[1:3]
    write_rows(checked / TRAIN, [*sample("train", 200), ["a", "b", "9"], sample("dev", 1)[1],
                                 [*first[:2], "0.1"]])
    checked.edit("recipes.sts.contract.leaked", 0.1)
    done = checked.dvc("repro", "prepare@sts")
    assert "train: 201 rows" in done.stdout
    for said in ("train: 1 rows left out that break a rule", "train: 1 rows left out that stand in dev too",
                 "train: 1 examples that stand there with different labels"):
        assert f"{said}; see data/prepared/sts/report.json and the lists beside it\n" in done.stdout
    assert (checked / "data/prepared/sts/quarantine.csv").read_text(encoding="utf-8") == (
        "split,file,line,column,rule,value\n"
        "train,data/raw/appliances/train.csv,202,score,is outside 0 to 5 (score_range),9\n")


def test_the_rows_that_stop_a_run_are_all_listed_until_the_next_one(checked):
    append(checked, *(f"a{n},b{n},9" for n in range(12)))
    done = checked.dvc("repro", "prepare@sts", check=False)
    assert "and 2 more rows\n" in done.stderr
    assert "every row that was left out: .evergreen/refused/sts/quarantine.csv\n" in done.stderr
    assert not (checked / "data/prepared/sts").exists()
    listed = (checked / ".evergreen/refused/sts/quarantine.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[2] for line in listed[1:]] == [str(n) for n in range(50, 62)]
    checked.edit("recipes.sts.contract.bad_rows", 0.5)
    checked.dvc("repro", "prepare@sts")
    assert not (checked / ".evergreen/refused/sts").exists()


def test_of_a_chain_that_was_not_trained_the_first_model_is_fetched(checked, evergreen):
    files = {path.name: path.read_bytes() for path in (checked / "tiny-bert").iterdir()}
    with HubServer() as hub:
        hub.plain |= files
        checked.edit("base_models.remote", {"far": {"url": f"{hub.url}/plain/", "licence": "MIT", "sha256": {
            name: hashlib.sha256(content).hexdigest() for name, content in files.items()}}})
        checked.edit("recipes.sts.base_model", "models/base/far")
        text = params.read(ROOT / "params.yaml")["recipes"]["tsdae"]
        text |= {"base_model": "models/sts", "dataset": "data/raw/appliances"}
        text["prepare"]["columns"]["text"] = "sentence1"
        text["contract"]["unknown"] = 0.4
        checked.edit("recipes.tsdae", text)
        done = evergreen("check", "tsdae")
    assert done.code == 0, done.out + done.err
    assert not Path("models").exists()


@pytest.mark.parametrize("name, said", [("stx", "recipe 'stx' is not known; known recipes: sts")])
def test_an_unknown_recipe_is_named(checked, evergreen, name, said):
    done = evergreen("check", name)
    assert (done.code, done.out) == (2, "") and said in done.err
