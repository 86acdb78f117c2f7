"""Two ranks see every row once, compute what one process computes, and end together, whatever ends one of them."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from steps import launching, params, prepare, provenance, recipes
from steps.schema import InputError
from tests.project import ROOT, Project, make_project
from tests.test_params import edited, refusal
from tests.waiting import until

STILL = {"batch_size": 10, "learning_rate": 1e-12}      # no weight moves, so that gradients can be compared
CASES = {       # rows of train: the last batch of 3 or 1 gives the ranks 2 and 1, or 1 and none
    "sts": ("sts", {"batch_size": 10, "epochs": 3}, 23),
    "nli": ("nli", STILL, 23),
    "cached": ("nli", {**STILL, "loss": "cached", "mini_batch_size": 2}, 21),
    "triplet": ("nli", {**STILL, "loss": "triplet", "gradient_accumulation": 2}, 21),
    "emotion": ("emotion", {**STILL, "class_weights": "balanced"}, 21),
    "tsdae": ("tsdae", {**STILL, "evaluations": 1, "split_saving": 1}, 23),
    "mlm": ("mlm", {**STILL, "split_saving": 1}, 23),
    "multilingual": ("multilingual", STILL, 21),
}
KILLED = {"killed-sts": ("sts", {"batch_size": 10, "epochs": 2}, 21, 2, 4),
          "killed-tsdae": ("tsdae", {"batch_size": 10, "epochs": 2, "evaluations": 1}, 23, 4)}
MODEL, CURVES, CHECKPOINTS = "models/sts", "evaluation/sts/training", ".evergreen/checkpoints/sts"
GONE = 20           # seconds until no rank of a training that failed is left


# The same batches, losses and gradients


def together(folder: Path, base_model: Path, cases: dict, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.together", str(base_model), json.dumps(cases)], cwd=folder, text=True,
        env=environment | {"PYTHONPATH": str(ROOT), "EVERGREEN_TRACKING": "none"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def epochs(tmp_path_factory, tiny_model, environment) -> dict[str, list[dict]]:
    """{case: what one process saw and computed, and each of two ranks}, without dropout, drawn apart by the ranks."""
    folder = tmp_path_factory.mktemp("together")
    still = shutil.copytree(tiny_model, folder / "tiny")
    config = json.loads((still / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config), encoding="utf-8")
    together(folder, still, CASES, environment)
    return {case: [{key: json.loads(str(value)) if value.dtype.kind == "U" else value
                    for key, value in np.load(folder / case / name).items()}
                   for name in ("1-0.npz", "2-0.npz", "2-1.npz")] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_each_row_of_a_batch_is_seen_by_one_rank(epochs, case):
    """A rank without a row shows its model the batch's only one, which counts for nothing."""
    alone, first, second = (found["seen"] for found in epochs[case])
    assert [len(batch) for batch in alone].count(10) >= 2 and min(map(len, alone)) in (1, 3)
    for batch, *parts in zip(alone, first, second, strict=True):
        assert parts == ([batch[::2], batch[1::2]] if len(batch) > 1 else [batch, batch])


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_one_process_with_the_whole_batch(epochs, case):
    alone, first, second = epochs[case]
    steps = 1 if case == "sts" else None        # whose weights move, and apart by what rounding leaves
    assert np.array_equal(first["gradients"], second["gradients"])
    assert np.allclose(alone["gradients"][:steps], first["gradients"][:steps], atol=3e-6)
    assert np.abs(alone["gradients"]).max() > 0.1
    assert np.allclose(alone["losses"], first["losses"], rtol=1e-3 if case == "sts" else 1e-5)


def test_curves_and_dev_scores_are_those_of_one_process(epochs):
    alone, first, second = (found["curves"] for found in epochs["sts"])
    assert first == second and [row["step"] for row in first] == [0, 3, 6, 9]
    for one, two in zip(alone, first, strict=True):
        assert two["dev_loss"] == pytest.approx(one["dev_loss"], rel=1e-3)
        assert two["dev_spearman_cosine"] == pytest.approx(one["dev_spearman_cosine"], abs=0.01)


# Killed, and continued


def test_ranks_that_were_killed_continue_to_the_bits_of_those_that_were_not(tmp_path, tiny_model, environment):
    """Both by kill -9 at the same steps; with dropout, which each draws from a random state of its own."""
    together(tmp_path, tiny_model, KILLED, environment)
    for case in KILLED:
        found = json.loads((tmp_path / case / "sha256.json").read_text(encoding="utf-8"))
        assert len(found["whole"]) == 3 and found["killed"] == found["whole"]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_model, environment) -> Project:
    """A project whose recipe sts trains in two processes, with its data prepared."""
    project = make_project(tmp_path_factory.mktemp("ranks") / "project", tiny_model, environment)
    project.edit("recipes.sts.train.processes", 2)
    project.edit("recipes.sts.train.epochs", 40)
    project.edit("recipes.sts.train.patience", 99)
    project.edit("checkpoint_seconds", 0)
    for made, source in (("data/raw/appliances", "samples/appliances"), ("models/base/tiny", "tiny-bert")):
        shutil.copytree(project / source, project / made)
    (project / "data/raw/appliances/source.json").write_text('{"name": "a", "licence": "MIT"}', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        prepare.prepare(recipes.get("sts"), params.load().recipe("sts"), Path("data/prepared/sts"))
    return project


@contextlib.contextmanager
def training(project: Project, told: str = "said", **environment: str):
    """The train step, as DVC starts it; what it says goes to the file `told`."""
    with open(project / told, "w", encoding="utf-8") as said:
        process = psutil.Popen(
            [sys.executable, "-m", "steps.train", "sts", "data/prepared/sts", MODEL, CURVES], cwd=project.folder,
            env=project.environment | {"EVERGREEN_TRACKING": "none", **environment}, stdin=subprocess.DEVNULL,
            stdout=said, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        for left in [*ranks(project), process]:
            with contextlib.suppress(psutil.Error):
                left.kill()
        process.wait(10)


def ranks(project: Project) -> list[psutil.Process]:
    """The ranks that live, in their order."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(project.folder) and launching.RANK in process.cmdline() and (
                    process.status() != psutil.STATUS_ZOMBIE):
                found[process.environ()["RANK"]] = process
    return [found[rank] for rank in sorted(found)]


def wait_for(what, process: psutil.Popen):
    """The first true answer of `what`, while the process lives."""
    def answer():
        assert process.poll() is None
        return what()
    return until(answer, 120)


def committed(project: Project) -> list[str]:
    return sorted(path.parent.name for path in (project / CHECKPOINTS).glob("*/*/manifest.json"))


def said(project: Project) -> str:
    return (project / "said").read_text(encoding="utf-8")


def test_what_ends_one_rank_ends_all_and_the_next_run_continues(base):
    """One rank is killed; then the step is asked to stop; then nothing happens to it."""
    with training(base) as process:
        wait_for(lambda: committed(base), process)
        ranks(base)[1].kill()
        assert process.wait(GONE) == 128 + signal.SIGKILL
        assert ranks(base) == []
    assert "error: rank 1 (process" in said(base) and "was killed by SIGKILL" in said(base)
    assert "Traceback" not in said(base) and not (base / MODEL).exists()
    before = committed(base)
    assert {path.name for path in (base / CHECKPOINTS).glob(f"*/{before[-1]}/rng*")} == {"rng_state_0.pth",
                                                                                         "rng_state_1.pth"}

    with training(base) as process:
        wait_for(lambda: committed(base)[-1] > before[-1], process)
        process.send_signal(signal.SIGINT)
        assert process.wait(GONE) == 130
        assert ranks(base) == []
    assert said(base).count("continues from the checkpoint of step") == 1
    assert said(base).count("interrupted; the next run continues") == 1 and "Traceback" not in said(base)

    with training(base) as process:
        assert process.wait(120) == 0
    assert said(base).count("continues from the checkpoint of step") == 1
    assert said(base).count("train loss") == 1      # one table
    assert (base / MODEL / "model.safetensors").exists() and not (base / CHECKPOINTS).exists()


def test_two_nodes_end_with_the_bits_of_two_processes_on_one(base):
    """Two nodes on this machine, which meet at a port; the first alone writes."""
    base.edit("recipes.sts.train.epochs", 2)
    with training(base) as process:
        assert process.wait(120) == 0, said(base)
    expected = provenance.sha256(base / MODEL / "model.safetensors")
    shutil.rmtree(base / MODEL)
    base.edit("recipes.sts.train.processes", 1)
    base.edit("recipes.sts.train.nodes", 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    with training(base, NODE_RANK="0", **meet) as first, training(base, "second", NODE_RANK="1", **meet) as second:
        assert (first.wait(180), second.wait(30)) == (0, 0), said(base)
    assert provenance.sha256(base / MODEL / "model.safetensors") == expected
    assert "train loss" in said(base) and "train loss" not in (base / "second").read_text(encoding="utf-8")


# What is refused


def test_a_batch_that_cannot_be_shared_out_is_refused_with_what_to_set(tmp_path):
    said = refusal(edited(tmp_path, "recipes/sts/train/processes", 3))
    assert ("recipes.sts.train: batch_size 16 is that of all processes together and cannot be divided by processes 3 x "
            "nodes 1 = 3: set batch_size to 15 or 18, or change processes") in said


@pytest.mark.parametrize("there, missing", [
    ({}, "MASTER_ADDR"), ({"MASTER_ADDR": "a"}, "MASTER_PORT"),
    ({"MASTER_ADDR": "a", "MASTER_PORT": "1"}, "NODE_RANK")])
def test_what_several_nodes_need_of_the_environment_is_named(monkeypatch, there, missing):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "PET_RDZV_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"train.nodes = 2, and the environment has no {missing}: set MASTER_ADDR, "):
        launching.rendezvous(2)


def test_where_nodes_meet_is_what_the_environment_says(monkeypatch):
    for name, value in {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launching.rendezvous(2) == ["--master-addr=a", "--master-port=1", "--node-rank=1"]
    monkeypatch.setenv("PET_RDZV_ENDPOINT", "b:2")
    assert "--rdzv-endpoint=b:2" in launching.rendezvous(2)
    assert launching.rendezvous(1) == ["--standalone", "--local-addr=127.0.0.1"]
