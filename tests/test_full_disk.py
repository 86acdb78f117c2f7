"""A step that fails in the middle of its writing, for a full disk or another reason: nothing half written stays."""

import shutil
from pathlib import Path

import pytest

from steps import command
from tests.project import digests
from tests.test_checkpoint import on_a_small_disk

SIZE = 4 * 2 ** 20
STEP = """
import importlib, os, pathlib, sys
from steps import command
module, left, *arguments = sys.argv[1:]
step, out, filler = importlib.import_module(module).main, pathlib.Path("disk/out"), pathlib.Path("disk/filler")
free = os.statvfs("disk")
filler.write_bytes(b"0" * (free.f_bavail * free.f_frsize - int(left)))
assert command.status(step, [*arguments, str(out)]) == 1
assert [path for path in pathlib.Path("disk").rglob("*") if path.is_file()] == [filler], "something half written"
filler.unlink()
assert command.status(step, [*arguments, str(out)]) == 0
"""
STEPS = {
    "download a data set": ("steps.download", ["dataset", "appliances"], "data/raw/appliances"),
    "download a model": ("steps.download", ["model", "tiny"], "models/base/tiny"),
    "prepare": ("steps.prepare", ["sts"], "data/prepared/sts"),
    "evaluate": ("steps.evaluate", ["sts", "data/prepared/sts", "models/sts"], "evaluation/sts/test"),
}


@pytest.mark.fault(6)
@pytest.mark.parametrize("part", [0, 0.4, 0.8], ids=["none", "two fifths", "four fifths"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_on_a_full_disk_says_so_leaves_nothing_and_ends_well_once_there_is_room(
        finished, tmp_path, monkeypatch, step, part):
    """`part` of what the step writes fits on the disk."""
    module, arguments, made = STEPS[step]
    folder = shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    monkeypatch.setenv("EVERGREEN_TRACKING", "none")
    before = {name: sha for name, sha in digests(folder).items() if name.startswith(f"{made}/")}
    size = sum((folder / name).stat().st_size // 4096 * 4096 + 4096 for name in before)
    done = on_a_small_disk(folder, SIZE, STEP + f"""
import shutil
shutil.rmtree({made!r})
shutil.copytree(out, {made!r})
""", module, str(int(size * part) // 4096 * 4096), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("error: no space left on the disk") == 1
    after = {name: sha for name, sha in digests(Path(folder)).items() if name.startswith(f"{made}/")}
    assert before and after == before


def test_a_folder_that_is_written_whole_takes_the_place_of_the_old_one_and_what_fails_leaves_that(tmp_path):
    out = tmp_path / "out/model"
    for name in ("old", "new"):
        with command.whole(out) as partial:
            (partial / name).touch()
    with pytest.raises(OSError, match="full"), command.whole(out) as partial:
        (partial / "half").touch()
        raise OSError("full")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model", "new", "out"]
