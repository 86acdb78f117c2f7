"""A training that was killed continues, and ends with the bits of one that never was."""

import ctypes
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from steps import resuming
from steps import training as library
from steps.schema import InputError
from tests.killing import PLACE, Training, forked, waited
from tests.project import ROOT, sample, write_rows
from tests.small import SAMPLES, softmax

pytestmark = pytest.mark.fault(1)
RECIPES = [*SAMPLES, "softmax"]


@pytest.fixture
def training(small, monkeypatch):
    """training("sts", epochs=2, ...) -> a Training of the recipe on 24 rows, 3 steps an epoch."""
    return lambda recipe, **settings: Training(monkeypatch, recipe, small(
        recipe, **{"epochs": 2, "patience": 99, **settings}))


@pytest.mark.parametrize("recipe", SAMPLES)
def test_every_recipe_ends_with_the_bits_of_one_that_was_not_killed(training, recipe):
    """Killed within the first epoch, at its end, and twice in the second."""
    found = training(recipe)
    expected = found.run()
    found.killed_at(2, 3, 4, 5)
    assert [path.name for path in found.checkpoints()] == ["checkpoint-00000003", "checkpoint-00000004"]
    assert found.run("killed") == expected
    assert not (PLACE / recipe).exists()


def test_softmax_does_with_its_classifier(small, monkeypatch):
    found = Training(monkeypatch, "nli", softmax(small("nli", epochs=2)))
    expected = found.run()
    found.killed_at(3, 5)
    assert found.run("killed") == expected


@pytest.fixture(scope="session")
def killed(environment, tmp_path_factory, pytestconfig) -> dict:
    """{recipe: what came of kills -9 at random moments of its training}, in processes of their own."""
    done = subprocess.run([sys.executable, "-m", "tests.killing", str(pytestconfig.getoption("kills")), "1", *RECIPES],
                          cwd=tmp_path_factory.mktemp("killed"), capture_output=True, text=True, check=False,
                          env=environment | {"PYTHONPATH": str(ROOT), "EVERGREEN_TRACKING": "none"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_kill_9_at_any_moment_costs_one_interval_at_most_and_no_bit(killed, pytestconfig, recipe):
    """A checkpoint at every step: the step that was in hand, or whose checkpoint was, is taken again."""
    found = killed[recipe]
    assert found["kills"] == len(found["lost"]) == pytestconfig.getoption("kills")
    assert max(found["lost"]) <= 1
    assert found["results"] and all(result == found["expected"] for result in found["results"])


@pytest.mark.parametrize("settings, steps", [
    ({"epochs": 3, "evaluations": 3}, (2, 5, 7)),                       # evaluations within an epoch
    ({"epochs": 3, "gradient_accumulation": 2}, (1, 2, 4)),             # 3 batches are 2 steps
    ({"epochs": 9, "patience": 1, "learning_rate": 1e-9}, (2, 4)),      # ends by itself
    ({"epochs": 2, "precision": "bf16"}, (2, 4)),
])
def test_so_does_every_way_to_count_steps(training, settings, steps):
    found = training("sts", **settings)
    expected = found.run()
    found.killed_at(*steps)
    assert found.checkpoints()
    assert found.run("killed") == expected


def test_so_does_a_log_whose_lines_are_means_of_several_steps(training, monkeypatch):
    found, arguments = training("sts", epochs=3), library.arguments
    monkeypatch.setattr(library, "arguments", lambda *given: {**arguments(*given), "logging_steps": 2})
    expected = found.run()
    found.killed_at(4, 6, 8)
    assert found.run("killed") == expected
    assert Path("curves-model/loss.csv").read_text(encoding="utf-8").count("\n") == 1 + 9 // 2


def test_so_does_an_epoch_that_leaves_rows_out(training):
    """Every anchor is the same, so that a batch holds one row of it and the epoch ends before its time."""
    found = training("nli")
    lines = Path("raw/train.csv").read_text(encoding="utf-8").splitlines()
    for place in range(2, 24, 2):
        lines[place] = lines[1]
    shutil.rmtree("data")
    Path("raw/train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = Training(found.patch, "nli", found.settings)
    expected = found.run()
    found.killed_at(2, 4)
    assert found.run("killed") == expected


@pytest.mark.parametrize("settings, last", [
    ({}, 6), ({"epochs": 9, "patience": 1, "learning_rate": 1e-9}, None)])       # ends by itself
def test_so_does_one_that_was_killed_behind_its_last_step(training, monkeypatch, settings, last):
    found = training("sts", **settings)
    expected = found.run()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("steps.train.parent", interrupted)
        found.run("killed")
    steps = int(found.checkpoints()[-1].name.removeprefix("checkpoint-"))
    assert steps == last if last else steps < 9 * 3
    assert found.run("killed") == expected


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_without_checkpoints_the_bits_are_the_same(training, monkeypatch):
    found = training("sts")
    expected = found.run()
    assert Training(monkeypatch, "sts", found.settings, seconds=1e9).run("rarely") == expected


@pytest.mark.fault(28)
@pytest.mark.parametrize("recipe", ["sts", "nli", "emotion"])
def test_a_training_whose_memory_is_too_small_continues_with_parts_of_batches_and_says_so(training, monkeypatch, recipe,
                                                                                          capsys):
    """nli's negatives are the rows of the batch, so it goes on with the loss that computes them part by part."""
    found = training(recipe)
    step_of, tries = resuming.Resumable.training_step, []

    def short_of_memory(trainer, model, inputs, num_items_in_batch=None):
        tries.append((trainer.state.global_step, trainer.parts))
        if trainer.parts == 1 and trainer.state.global_step == 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory")
        return step_of(trainer, model, inputs, num_items_in_batch)

    with monkeypatch.context() as patched:
        patched.setattr(resuming.Resumable, "training_step", short_of_memory)
        found.run()
    assert tries == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (5, 2)]
    assert "out of memory: once more from the last checkpoint" in capsys.readouterr().err
    assert json.loads(Path("model/lineage.json").read_text(encoding="utf-8"))["batches_computed_in_parts"] == 2


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")])
def test_memory_that_is_too_small_has_many_names(error):
    assert resuming.out_of_memory(error) and not resuming.out_of_memory(RuntimeError("shapes do not match"))


class Asked(TrainerCallback):
    """Sends this process a signal twice, as where its whole group is asked and its parent dies of it."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)


@pytest.mark.fault(8)
def test_two_requests_at_once_are_one_and_saving_has_time_of_its_own(training, monkeypatch):
    """Of the time for the step nothing is left when saving begins, and saving takes longer than that was."""
    monkeypatch.setattr(resuming, "PATIENCE", 2.0)
    found = training("sts")
    expected = found.run()
    write = resuming.Resumable.write

    def slowly(trainer, folder, states):
        time.sleep(2.5 if trainer.asked else 0)
        write(trainer, folder, states)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(resuming.Resumable, "write", slowly)
        found.fault(Asked())
    assert found.checkpoints()[-1].name == "checkpoint-00000003"
    assert found.run("killed") == expected


def test_memory_that_is_too_small_for_the_parts_too_is_said_with_the_remedy(training, monkeypatch):
    def short_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 MiB")

    found = training("sts")
    monkeypatch.setattr(resuming.Resumable, "training_step", short_of_memory)
    with pytest.raises(InputError, match=r"in 2 parts too \(CUDA .*\): lower train.batch_size"):
        found.run()
    assert not Path("model").exists()


class Confined(TrainerCallback):
    """From step 2 on the kernel gives this process three quarters of the memory that a step took before."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_AS, (used("VmSize") + (used("VmPeak") - used("VmSize")) * 3 // 4,) * 2)


def used(what: str) -> int:
    """Bytes of this process's address space."""
    return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.fault(28)
def test_a_training_that_the_kernel_refuses_memory_continues_with_parts_of_batches(small, monkeypatch, capfd):
    """A step on 192 pairs of long texts needs more than that, one on half of them does not."""
    settings = small("sts", batch_size=192, epochs=4)
    settings = settings.model_copy(update={"contract": settings.contract.model_copy(update={"truncated": 1.0})})
    header, *rows = sample("train", 1000)
    texts = [" ".join(row[0] for row in rows[start:start + 12]) for start in range(384)]
    pairs = zip(texts[::2], texts[1::2], itertools.cycle("14"), strict=False)
    write_rows(Path("raw/train.csv"), [header, *pairs])
    found, follow = Training(monkeypatch, "sts", settings), library.follow
    monkeypatch.setattr(library, "follow", lambda *given: (follow(*given), given[0].add_callback(Confined())))

    def train() -> None:
        ctypes.CDLL(None).mallopt(-3, 65536)        # what is freed is the kernel's again
        found.run()

    assert waited(forked(train)) == 0
    said = capfd.readouterr()
    assert "out of memory: once more from the last checkpoint" in said.err
    assert "continues from the checkpoint of step 2 of 4" in said.out
    assert json.loads(Path("model/lineage.json").read_text(encoding="utf-8"))["batches_computed_in_parts"] == 2
