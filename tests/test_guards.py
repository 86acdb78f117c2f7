"""Each guard switched off: what it guards against then happens, so the matrix's tests would see it gone."""

import contextlib
import errno
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flows import graph, preflight, processes, room
from steps import checkpoint, command, download, embedding, params, resuming
from steps import training as library
from steps.schema import InputError
from steps.sources import Source
from tests.hub_server import HubServer
from tests.killing import Kill, Killed, Training
from tests.project import digests
from tests.small import changed
from tests.test_cache import cached
from tests.test_checkpoint import fill, flip, step_of
from tests.test_room import weights as header_of

pytestmark = pytest.mark.guard


def kept_in(folder: Path) -> checkpoint.Checkpoints:
    found = checkpoint.Checkpoints(folder / "checkpoints", 0.0, {"rate": "1"})
    for number in (1, 2):
        found.commit(number, lambda place, number=number: fill(place, number))
    return found


@pytest.fixture
def found(small, monkeypatch) -> Training:
    return Training(monkeypatch, "sts", small("sts", epochs=2, patience=9))


def differs(found: Training, step: int = 4) -> bool:
    """Whether a training that was killed at that step of 6 ends with other bits than one that was not."""
    expected = found.run()
    found.killed_at(step)
    return found.run("killed") != expected


def test_no_digests_row_3(tmp_path, monkeypatch):
    """A flipped bit is continued from."""
    kept = kept_in(tmp_path)
    flip(kept.folder / "checkpoint-00000002/weights")
    monkeypatch.setattr(checkpoint, "damage", lambda folder: None)
    assert step_of(kept.newest()) == 2


def test_no_manifest_row_2(tmp_path, monkeypatch):
    """A folder that a kill left half written is continued from."""
    kept = kept_in(tmp_path)
    (kept.folder / "checkpoint-00000003").mkdir()
    monkeypatch.setattr(checkpoint, "damage", lambda folder: None)
    monkeypatch.setattr(checkpoint, "manifest", lambda folder: {"fingerprint": kept.fingerprint})
    assert step_of(kept.newest()) == 3


def test_no_second_checkpoint_row_3(tmp_path, monkeypatch):
    """Damage to the only one left is the loss of all."""
    monkeypatch.setattr(checkpoint, "KEPT", 1)
    kept = kept_in(tmp_path)
    flip(kept.folder / "checkpoint-00000002/weights")
    assert kept.newest() is None


def test_no_digests_of_any_row_4(found, monkeypatch):
    """Where all are damaged, one of them is continued from."""
    expected = found.run()
    found.killed_at(5)
    for path in (file for folder in found.checkpoints() for file in folder.glob("*.safetensors")):
        save_file({name: value * 2 for name, value in load_file(path).items()}, path)
    monkeypatch.setattr(checkpoint, "damage", lambda folder: None)
    assert found.run("killed") != expected


def test_no_fingerprint_row_5(found, monkeypatch):
    """A training continues with settings that it did not begin with: no training with either has its bits."""
    expected = Training(monkeypatch, "sts", changed(found.settings, learning_rate=0.002)).run()
    monkeypatch.setattr(checkpoint, "digest", lambda content: "one for all of them")
    found.killed_at(4)
    assert Training(monkeypatch, "sts", changed(found.settings, learning_rate=0.002)).run("killed") != expected


@pytest.mark.parametrize("lost", ["_load_rng_state", "_load_optimizer_and_scheduler"])
def test_no_random_states_or_no_optimizer_row_1(found, monkeypatch, lost):
    monkeypatch.setattr(resuming.Resumable, lost, lambda self, checkpoint: None, raising=False)
    assert differs(found)


def test_no_curves_row_1(found, monkeypatch):
    monkeypatch.setattr(library.History, "restore", lambda self, state, best: setattr(
        self, "place", tuple(state["place"])))
    assert differs(found)


def test_no_place_in_the_data_row_1(found, monkeypatch):
    init = resuming.Resumable._init_training_state
    monkeypatch.setattr(resuming.Resumable, "_init_training_state",
                        lambda self, *a: (init(self, *a)[0], 0) if a[3] else init(self, *a))
    assert differs(found, 3)


def test_no_weights_of_the_loss_row_1(small, monkeypatch):
    """The decoder of tsdae starts anew, as it does with the library's own checkpoints."""
    found = Training(monkeypatch, "tsdae", small("tsdae", epochs=2, patience=9))
    monkeypatch.setattr(resuming.Resumable, "trained", lambda self: self.model)
    assert differs(found)


def test_no_best_weights_row_1(small, monkeypatch):
    """The best evaluation is the first; killed behind it, the training keeps what came later."""
    found = Training(monkeypatch, "sts", small("sts", epochs=2, patience=9))
    monkeypatch.setattr(library.History, "kept", lambda self: self.epochs[min(1, len(self.epochs) - 1)])
    restore = library.History.restore

    def forgetful(self, state, best):
        restore(self, state, best)
        self.best = {k: v.detach().clone() for k, v in self.trainer.model.state_dict().items()}

    monkeypatch.setattr(library.History, "restore", forgetful)
    assert differs(found)


def test_no_check_of_what_is_finite_row_26(small, monkeypatch):
    """A model whose weights are no numbers is trained to the end and kept."""
    found = Training(monkeypatch, "emotion", small("emotion", learning_rate=1e38, epochs=1))
    monkeypatch.setattr(resuming.math, "isfinite", lambda value: True)
    found.run()
    assert any(np.isnan(weights).any() for weights in load_file("model/model.safetensors").values())


def test_no_check_of_the_embeddings_row_26(small, monkeypatch, tiny_model):
    """A model that has one vector for all texts is trained to the end and kept: its accuracy is a number."""
    shutil.copytree(tiny_model, "same")
    weights = load_file("same/model.safetensors")
    save_file({name: np.full_like(value, name.endswith("LayerNorm.bias")) for name, value in weights.items()},
              "same/model.safetensors", {"format": "pt"})
    found = Training(monkeypatch, "nli", small("nli", epochs=1).model_copy(update={"base_model": "same"}))
    with pytest.raises(InputError, match="the embeddings have collapsed"):
        found.run()
    monkeypatch.setattr(embedding, "collapsed", lambda *_: False)
    found.run()
    assert Path("model/model.safetensors").exists()


def test_no_look_at_the_disk_row_7(project, inside, monkeypatch):
    """A training begins whose checkpoints do not fit."""
    inside(project)
    monkeypatch.setattr(room, "memory", lambda processes: 1 << 60)
    header_of(project / "tiny-bert/model.safetensors", shutil.disk_usage(".").free // 42_000)
    with pytest.raises(InputError, match="3 checkpoints of tiny-bert need"):
        preflight.check(["sts"], params.load())
    monkeypatch.setattr(room, "CHECKPOINTS", 0)
    preflight.check(["sts"], params.load())


def test_no_ear_for_signals_row_8(small, monkeypatch):
    """A training that is asked to stop leaves no checkpoint."""
    def die(number, frame):
        raise Killed

    def asked() -> Kill:
        return Kill({2}, lambda: os.kill(os.getpid(), signal.SIGTERM))

    before = signal.signal(signal.SIGTERM, die)
    try:
        found = Training(monkeypatch, "sts", small("sts", epochs=1), seconds=1e9)
        with pytest.raises(KeyboardInterrupt):
            found.fault(asked())
        assert len(found.checkpoints()) == 1
        shutil.rmtree(checkpoint.PLACE)
        monkeypatch.setattr(resuming.Resumable, "listening", lambda self: contextlib.nullcontext())
        found.fault(asked())
        assert found.checkpoints() == []
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_mending_of_what_a_kill_left_row_10(copy, inside):
    """DVC's list of who reads and writes what is half written: no stage runs any more."""
    inside(copy)
    graph.RWLOCK.write_text('{"', encoding="utf-8")
    with pytest.raises(graph.StageFailed):
        graph.reproduce("train@sts", print)
    graph.mend()
    assert graph.reproduce("train@sts", print) == "unchanged"


def test_no_digests_of_the_cache_row_11(copy, inside, monkeypatch):
    """A model that rotted is restored and called so."""
    inside(copy)
    before = digests(copy.folder)
    flip(cached(copy, copy / "models/sts/model.safetensors"))
    shutil.rmtree(copy / "models/sts")
    monkeypatch.setattr(graph, "discard_damaged", lambda *a: [])
    assert graph.reproduce("train@sts", print) == "restored"
    assert digests(copy.folder) != before


def test_no_lock_of_the_folder_row_12(tmp_path, monkeypatch):
    """Two runs work in one folder."""
    monkeypatch.chdir(tmp_path)
    with command.only_one(processes.CLONE, "this folder"):
        with pytest.raises(InputError, match="works in this folder"), command.only_one(processes.CLONE, "this folder"):
            pass
        monkeypatch.setattr("filelock.FileLock.acquire", lambda self, *a, **k: self)
        with command.only_one(processes.CLONE, "this folder"):
            pass


def test_no_digest_of_what_is_fetched_row_27(tmp_path, monkeypatch):
    """Other bytes than were pinned are taken for the model."""
    monkeypatch.chdir(tmp_path)
    with HubServer() as hub:
        hub.plain["model.safetensors"] = b"changed"
        entry = Source(url=f"{hub.url}/plain/", licence="none", sha256={"model.safetensors": "0" * 64})
        with pytest.raises(InputError, match=r"model.safetensors has sha256 \w+, not 0000"):
            download.download("it", entry, "model", Path("out"))
        assert not Path("out").exists()
        monkeypatch.setattr(download, "sha256", lambda path: "0" * 64)
        download.download("it", entry, "model", Path("out"))
    assert Path("out/model.safetensors").read_bytes() == b"changed"


def test_no_step_lock_row_9(tmp_path, monkeypatch):
    """Two write one output at the same time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "WAIT", 0.1)
    monkeypatch.setattr("filelock.FileLock.acquire", lambda self, *a, **k: self)
    monkeypatch.setattr("filelock.FileLock.release", lambda self, *a, **k: None)
    with command.only_writer(["curves"]), command.only_writer(["curves"]):
        pass


def test_no_cleaning_up_row_6(tmp_path, monkeypatch):
    """What a full disk left is there to be mistaken for a checkpoint."""
    kept = kept_in(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *a, **k: None)

    def full(folder):
        (folder / "weights").write_bytes(b"3")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        kept.commit(3, full)
    assert (kept.folder / "checkpoint-00000003").exists()


def test_no_second_try_row_28(small, monkeypatch):
    """A training whose batches fit in parts alone ends without a model."""
    found, step_of = Training(monkeypatch, "sts", small("sts", epochs=1)), resuming.Resumable.training_step

    def short_of_memory(self, model, inputs, num_items_in_batch=None):
        if self.parts == 1:
            raise MemoryError
        return step_of(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(resuming.Resumable, "training_step", short_of_memory)
    found.run("parts")
    assert Path("parts").exists()
    monkeypatch.setattr(resuming, "out_of_memory", lambda error: False)
    with pytest.raises(MemoryError):
        found.run()
    assert not Path("model").exists()
