"""The stack's processes and secrets one by one; and what stops it from starting."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from infra import keys, postgres, processes, stack
from steps import command
from steps.schema import InputError
from tests.project import ROOT
from tests.waiting import until


@pytest.mark.parametrize("server", ["prefect", "mlflow", "sftp"])
def test_no_server_starts_without_its_secret(server, tmp_path, environment):
    (tmp_path / "password").touch()
    done = subprocess.run([sys.executable, "-m", "infra.serve", server, "--host", "0.0.0.0", "--port", "1",
                           "--secrets", tmp_path, "--data", tmp_path / "data"], cwd=ROOT, env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "starts without its secret" in done.stderr and "Traceback" not in done.stderr


def told(evergreen_stack, capsys) -> tuple[int, str]:
    return command.status(stack.main, evergreen_stack), capsys.readouterr().err


def test_a_public_address_needs_a_password_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOST", "0.0.0.0")
    code, said = told(["up"], capsys)
    assert code == 2 and "HOST=0.0.0.0" in said and ".stack/secrets/password" in said
    assert not (tmp_path / ".stack").exists()


def test_without_postgresql_it_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(postgres.shutil, "which", lambda *_, **__: None)
    code, said = told(["up"], capsys)
    assert code == 2 and "apt-get install postgresql" in said and not (tmp_path / ".stack").exists()


def test_a_process_that_got_the_number_of_another_is_left_alone(tmp_path):
    part = processes.Part(tmp_path, "sleeper")
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        part.record.parent.mkdir()
        part.record.write_text(json.dumps({"pid": stranger.pid, "started": "another boot 1"}), encoding="utf-8")
        assert part.leader() is None and part.stop() is False
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_part_ends_with_children_that_left_it(tmp_path):
    part = processes.Part(tmp_path, "parent")
    part.start(["bash", "-c", "setsid sleep 60 & exec sleep 60"], dict(os.environ))
    until(lambda: len(part.family()) == 2)
    family = part.family()
    part.leader().kill()
    until(lambda: part.leader() is None)
    assert part.stop() is True
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_wrong_password_file_is_refused(tmp_path):
    for text, why in (("", "is empty"), ("short", "at least 12"), ("with:a colon in it", "no colon")):
        (tmp_path / "password").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=why):
            keys.read(tmp_path, "password")
