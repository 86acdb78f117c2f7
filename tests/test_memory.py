"""A training that the kernel kills: one more try from its checkpoint, for want of memory in smaller parts."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from flows import graph, processes


@pytest.mark.fault(28)
def test_a_stage_that_was_killed_has_one_more_try_and_no_third(copy, inside):
    inside(copy)
    copy.edit("seed", 7)
    step = copy / "steps/train.py"
    code = step.read_text()
    kill = "tries = Path('tries')\ntries.write_text((tries.read_text() if tries.exists() else '') + 'x')\n"
    step.write_text(code.replace('if __name__ == "__main__":\n', f'{kill}if len(tries.read_text()) < 3:\n'
                                 '    os.kill(os.getpid(), 9)\nif __name__ == "__main__":\n'))
    lines = []
    with pytest.raises(processes.StageKilled, match="train@sts was killed by something outside"):
        graph.reproduce("train@sts", lines.append)
    assert (copy / "tries").read_text() == "xx"
    assert sum("once more" in line for line in lines) == 1
    assert graph.reproduce("train@sts", lines.append) == "ran"


@pytest.fixture
def small_group() -> Path:
    """A control group of the kernel whose processes may have 60 MB together."""
    for place, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(place, f"evergreen-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(60 * 2 ** 20))
                yield group
                return
            finally:
                group.rmdir()
    pytest.skip("no control group can be made here: that needs root and the kernel's memory controller")


@pytest.mark.fault(28)
def test_a_training_that_the_kernel_kills_for_want_of_memory_goes_on_with_parts_of_batches(copy, inside, small_group):
    """The first try gets into a group whose memory ends before torch is imported."""
    inside(copy)
    copy.edit("seed", 8)
    step = copy / "steps/train.py"
    join = (f"if 'EVERGREEN_PARTS' not in os.environ:\n    Path('{small_group}/cgroup.procs').write_text('0')\n"
            "    rest = bytearray(200 * 2 ** 20)\n")
    step.write_text(step.read_text().replace('if __name__ == "__main__":\n', f'{join}if __name__ == "__main__":\n'))
    lines = []
    assert graph.reproduce("train@sts", lines.append) == "ran"
    assert [line for line in lines if line.endswith(
        "and the kernel did kill for want of it; once more, and where one process trains, with batches computed in two "
        "parts")]
    assert json.loads((copy / "models/sts/lineage.json").read_text())["batches_computed_in_parts"] == 2
