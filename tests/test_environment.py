"""The pins: what is declared, what is locked, and what is installed agree."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from steps import provenance
from steps.schema import InputError
from tests.project import ROOT


def pins(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s\\]+)", text, re.MULTILINE))


def test_the_training_environment_is_a_part_of_the_whole():
    training, whole = pins("requirements.train.lock"), pins("requirements.lock")
    assert len(training) > 30
    assert training.items() <= whole.items()
    assert not {"prefect", "mlflow", "dvc"} & set(training)


def test_every_pin_but_torch_has_hashes_and_torch_is_pinned_once():
    for name in ("requirements.lock", "requirements.train.lock"):
        entries = re.findall(r"^[A-Za-z0-9_.-]+==[^\n]*\n((?:    --hash=sha256:[0-9a-f]{64}[^\n]*\n?)*)",
                             (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert entries and all(entries)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    torch, = (d for d in declared if d.startswith("torch=="))
    assert pins("requirements.torch.txt") == {"torch": torch.removeprefix("torch==")}
    assert metadata.version("torch").split("+")[0] == torch.removeprefix("torch==")


def test_what_is_installed_is_what_is_locked(monkeypatch):
    monkeypatch.chdir(ROOT)
    provenance.check_environment()


@pytest.mark.fault(30)
def test_another_version_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch):
    lock = tmp_path / "requirements.train.lock"
    lock.write_text("numpy==1.0.0 \\\n    --hash=sha256:0\n", encoding="utf-8")
    monkeypatch.setattr(provenance, "LOCKS", (lock,))
    with pytest.raises(InputError, match=r"numpy is .*, .*requirements.train.lock says 1.0.0\n.*make setup"):
        provenance.check_environment()
