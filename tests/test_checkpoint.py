"""A checkpoint counts when its manifest has its name, and only while every byte is what was saved and meant."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from steps import checkpoint, params, recipes, train, training
from tests.killing import PLACE, Training
from tests.project import ROOT
from tests.small import changed

WANTED = {"learning_rate": "0.1", "train.arrow": "ab" * 32}


@pytest.fixture
def kept(tmp_path, monkeypatch) -> checkpoint.Checkpoints:
    """Two checkpoints of two small files each."""
    monkeypatch.chdir(tmp_path)
    found = checkpoint.Checkpoints(tmp_path / "checkpoints", 0.0, WANTED)
    for step in (1, 2):
        found.commit(step, lambda folder, step=step: fill(folder, step))
    return found


def fill(folder: Path, step: int) -> None:
    (folder / "weights").write_bytes(bytes([step]) * 1000)
    (folder / "history").write_bytes(bytes([step]) * 10)


def step_of(path: Path | None) -> int | None:
    return path and int(path.name.removeprefix("checkpoint-"))


def test_the_two_newest_are_kept(kept):
    kept.commit(3, lambda folder: fill(folder, 3))
    assert [step_of(path) for path in checkpoint.committed(kept.folder)] == [2, 3]
    assert step_of(kept.newest()) == 3


@pytest.mark.parametrize("seconds, cost, ago, due", [(60, 0, 59, False), (60, 0, 61, True),
                                                     (60, 9, 179, False), (60, 9, 181, True)])
def test_slow_saving_is_done_less_often(kept, seconds, cost, ago, due):
    """9 s are 5 % of 180 s."""
    kept.seconds, kept.cost = seconds, cost
    kept.saved -= ago
    assert kept.due() == due


@pytest.mark.fault(2)
@pytest.mark.parametrize("point", range(7))
def test_a_kill_at_any_write_leaves_a_checkpoint_to_continue_from(kept, point):
    """At each of the two files, and at each of the five waits for the disk."""
    if not (child := os.fork()):
        points = iter(range(100))

        def here(*arguments):
            if next(points) == point:
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.synced = here
        kept.commit(3, lambda folder: [here((folder / name).write_bytes(b"3")) for name in ("weights", "history")])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert step_of(kept.newest()) == (2 if point < 5 else 3)
    assert not list(kept.folder.glob("*/*.partial"))


def flip(path: Path) -> None:
    mode, content = path.stat().st_mode, bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(mode)


DAMAGES = {"truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
           "empty": lambda path: os.truncate(path, 0), "flipped": flip, "missing": Path.unlink}


@pytest.mark.fault(3)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_named_and_the_older_checkpoint_is_used(small, monkeypatch, capsys, damage):
    found = Training(monkeypatch, "emotion", small("emotion", epochs=2))
    found.killed_at(5)
    shutil.copytree(PLACE, "whole")
    files = [path.name for path in found.checkpoints()[-1].iterdir()]
    assert {"manifest.json", "weights.safetensors", "best.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
            "trainer_state.json", "history.json"} == set(files)
    for name in files:
        shutil.rmtree(PLACE)
        shutil.copytree("whole", PLACE)
        newest = found.checkpoints()[-1]
        DAMAGES[damage](newest / name)
        checkpoints = checkpoint.Checkpoints(PLACE / "emotion", 0.0, checkpoint.manifest(
            newest.parent / "checkpoint-00000003")["fingerprint"])
        assert step_of(checkpoints.newest()) == 3
        said = capsys.readouterr().err
        assert f"{newest}: " in said and "passed over" in said
        assert name in said or name == "manifest.json"


@pytest.mark.fault(4)
def test_with_all_damaged_the_training_starts_anew_and_says_so(small, monkeypatch, capsys):
    found = Training(monkeypatch, "sts", small("sts", epochs=2))
    expected = found.run()
    found.killed_at(5)
    for path in found.checkpoints():
        flip(path / "weights.safetensors")
    assert found.run("killed") == expected
    said = capsys.readouterr().err
    assert said.count("weights.safetensors is damaged; passed over") == 2
    assert said.endswith("training starts from the beginning\n")


@pytest.mark.fault(5)
def test_a_training_with_other_settings_does_not_continue_says_why_and_has_the_bits_of_a_new_one(small, monkeypatch,
                                                                                               capsys):
    recipe = small("sts", epochs=2)
    other = Training(monkeypatch, "sts", changed(recipe, learning_rate=0.002))
    expected = other.run()
    Training(monkeypatch, "sts", recipe).killed_at(5)
    assert other.run("killed") == expected
    said = capsys.readouterr().err
    assert "is not continued" in said and "train.learning_rate: was 0.001, is 0.002" in said


@pytest.mark.fault(5)
def test_who_goes_back_to_the_settings_that_a_training_began_with_continues_it(small, monkeypatch, capsys):
    """Two others were begun in between: of trainings that did not end, the last and the one in hand are kept."""
    begun = Training(monkeypatch, "sts", small("sts", epochs=2))
    expected = begun.run()
    begun.killed_at(5)
    other = Training(monkeypatch, "sts", changed(begun.settings, learning_rate=0.002))
    other.killed_at(3)
    assert [step_of(path) for path in begun.checkpoints()] in ([3, 4, 1, 2], [1, 2, 3, 4])
    capsys.readouterr()
    assert begun.run("killed") == expected
    assert "from the beginning" not in capsys.readouterr().err and not begun.checkpoints()

    begun.killed_at(5)
    other.killed_at(3)
    third = Training(monkeypatch, "sts", changed(begun.settings, learning_rate=0.003))
    third.killed_at(2)
    assert len({path.parent for path in third.checkpoints()}) == 2
    said = capsys.readouterr().err
    assert "train.learning_rate: was 0.001, is 0.002" in said and "train.learning_rate: was 0.002, is 0.003" in said
    assert begun.run("killed") == expected and "training starts from the beginning" in capsys.readouterr().err


@pytest.mark.fault(5)
def test_a_disk_without_room_for_both_loses_the_checkpoints_of_the_training_before(small, monkeypatch, capsys):
    begun = Training(monkeypatch, "sts", small("sts", epochs=2))
    begun.killed_at(5)
    one = checkpoint.size(begun.checkpoints()[-1])
    for free, rate, folders in ((4 * one, 0.002, 2), (2 * one, 0.003, 1)):
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
            other = Training(monkeypatch, "sts", changed(begun.settings, learning_rate=rate))
            other.killed_at(3)
        assert len({path.parent for path in other.checkpoints()}) == folders
        assert ("no room for both" in capsys.readouterr().err) == (folders == 1)


def test_a_file_that_cannot_be_read_is_damaged(tmp_path, monkeypatch):
    kept = checkpoint.Checkpoints(tmp_path / "checkpoints", 0.0, WANTED)
    kept.commit(1, lambda folder: (folder / "weights").write_bytes(b"1"))
    path, = checkpoint.committed(tmp_path)

    def bad_sector(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "sha256", bad_sector)
    assert checkpoint.damage(path) == "weights is damaged"


def fingerprint(recipe, data: Path = Path("data"), **project) -> dict:
    return train.fingerprint("sts", recipe, params.load(ROOT / "params.yaml").model_copy(update=project), data,
                             Path(recipe.base_model), training.hardware("fp32"))


@pytest.fixture
def recipe(small, tiny_model, monkeypatch):
    shutil.copytree(tiny_model, "tiny")
    found = small("sts").model_copy(update={"base_model": "tiny"})
    Training(monkeypatch, "sts", found)
    return found


def rewritten(path: str):
    return lambda recipe: (flip(Path(path)), fingerprint(recipe))[1]


@pytest.mark.fault(5)
@pytest.mark.parametrize("name, other", {
    "seed": lambda recipe: fingerprint(recipe, seed=7),
    "threads": lambda recipe: fingerprint(recipe, threads=7),
    "train.batch_size": lambda recipe: fingerprint(changed(recipe, batch_size=4)),
    "train.epochs": lambda recipe: fingerprint(changed(recipe, epochs=4)),
    "train.arrow": rewritten("data/train.arrow"),
    "dev.arrow": rewritten("data/dev.arrow"),
    "base_model/model.safetensors": rewritten("tiny/model.safetensors"),
    "environment": rewritten("requirements.train.lock"),
}.items())
def test_each_thing_that_the_bits_depend_on_is_compared(recipe, name, other):
    before = fingerprint(recipe)
    changed_lines = checkpoint.difference(before, other(recipe))
    assert [line.partition(": was ")[0] for line in changed_lines] == [name]


def test_code_and_hardware_are_compared_too_and_the_test_rows_are_not(recipe):
    recipes.get("nli")
    found = fingerprint(recipe)
    assert {"steps/train.py", "steps/training.py", "steps/resuming.py", "device", "precision"} <= set(found)
    assert [name for name in found if name.startswith(("steps/recipes/", "steps/tasks/"))] == [
        "steps/recipes/__init__.py", "steps/recipes/sts.py", "steps/tasks/__init__.py", "steps/tasks/sts.py"]
    flip(Path("data/test.arrow"))
    assert fingerprint(recipe) == found


# A full disk

FULL = """
import pathlib, shutil, sys
from steps import checkpoint, command
kept = checkpoint.Checkpoints(pathlib.Path("disk/checkpoints"), 0.0, {})
kept.commit(1, lambda folder: (folder / "weights").write_bytes(b"1" * 100_000))
pathlib.Path("disk/filler").write_bytes(b"0" * (int(sys.argv[1]) - 300_000))
save = lambda *_: kept.commit(2, lambda folder: [(folder / name).write_bytes(b"2" * 300_000) for name in "ab"])
assert command.status(save, []) == 1
assert [path.name for path in pathlib.Path("disk/checkpoints").glob("*/*")] == ["checkpoint-00000001"]
pathlib.Path("disk/filler").unlink()
assert command.status(save, []) == 0
assert kept.newest().name == "checkpoint-00000002"
"""


def on_a_small_disk(folder: Path, size: int, code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs code in the folder, in which `disk` is a file system of so many bytes."""
    (folder / "disk").mkdir()
    script = f"mount -t tmpfs -o size={size} tmpfs disk || exit 77; exec \"$0\" -c \"$@\""
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, sys.executable, code, *arguments], cwd=folder,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"no small file system can be made here: {done.stderr.strip()}")
    return done


@pytest.mark.fault(6)
@pytest.mark.parametrize("size", range(800_000, 1_800_000, 100_000))
def test_a_full_disk_is_named_keeps_what_is_committed_and_room_is_all_it_needs(tmp_path, size):
    done = on_a_small_disk(tmp_path, size // 4096 * 4096, FULL, str(size))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: no space left on the disk") == 1


TRAIN = """
import os, pathlib, shutil, sys
from steps import checkpoint, command, train
from steps.provenance import sha256
os.symlink("disk", ".evergreen")
checkpoint.SHARE = 1e9
room = pathlib.Path("disk/filler")
arguments = ["sts", "data/prepared/sts", "again", "curves"]
room.write_bytes(b"0" * int(sys.argv[1]))
assert command.status(train.main, arguments) == 1
assert not pathlib.Path("again").exists()
room.unlink()
assert command.status(train.main, arguments) == 0
assert sha256(pathlib.Path("again/model.safetensors")) == sha256(pathlib.Path("models/sts/model.safetensors"))
"""


@pytest.mark.fault(6)
def test_a_training_on_a_full_disk_says_so_and_ends_well_once_there_is_room(finished, tmp_path, monkeypatch):
    """Torch says 'unexpected pos' of a full disk; a checkpoint of the tiny model has 700 kB."""
    folder = shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    shutil.rmtree(folder / ".evergreen")
    params_file = folder / "params.yaml"
    params_file.write_text(params_file.read_text().replace("checkpoint_seconds: 60", "checkpoint_seconds: 0"))
    monkeypatch.setenv("EVERGREEN_TRACKING", "none")
    done = on_a_small_disk(folder, 3_200_000 // 4096 * 4096, TRAIN, "2500000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error: no space left on the disk" in done.stderr
