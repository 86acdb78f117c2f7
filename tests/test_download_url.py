"""Downloads from a plain URL: what a cut or a kill left is used, wrong bytes are refused."""

import hashlib
import signal
import subprocess
from pathlib import Path

import pytest

from tests.hub_server import Handler, HubServer, Place
from tests.waiting import until

WEIGHTS = bytes(range(256)) * 16000      # 4 MB


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def place(tmp_path, environment, hub) -> Place:
    return Place(tmp_path / "place", environment, hub.url)


@pytest.fixture
def big(place, hub) -> bytes:
    """4 MB at a URL, declared with their sha256; the name needs quoting."""
    content = hub.plain["the weights.bin"] = WEIGHTS
    place.declare("base_models", "remote", {"url": f"{hub.url}/plain/", "licence": "none",
                                            "sha256": {"the weights.bin": sha256(content)}})
    return content


def part(place: Place, content: bytes) -> Path:
    """Where the bytes of an unfinished download lie."""
    return place.folder / ".evergreen/downloads" / sha256(content)


def test_a_url_that_is_busy_twice_is_asked_again(place, hub, big):
    hub.faults["GET", "the weights.bin"] = [503, 429]
    assert place.gets() == {"the weights.bin": big}
    assert len(hub.requests) == 3


@pytest.mark.fault(27)
def test_after_a_cut_only_the_rest_is_asked_for(place, hub, big):
    hub.faults["GET", "the weights.bin"] = ["cut"]
    assert place.gets() == {"the weights.bin": big}
    assert hub.asked("GET", "the weights.bin") == [None, f"bytes={len(big) // 2}-"]
    assert not part(place, big).exists()


def test_a_killed_url_download_goes_on_where_it_was(place, hub, big):
    hub.faults["GET", "the weights.bin"] = ["hang"]
    with subprocess.Popen(place.command("model"), cwd=place.folder, env=place.environment) as process:
        until(lambda: part(place, big).exists() and part(place, big).stat().st_size)
        process.send_signal(signal.SIGKILL)
    assert not place.out.exists()
    have = part(place, big).stat().st_size
    assert place.gets() == {"the weights.bin": big}
    assert hub.asked("GET", "the weights.bin") == [None, f"bytes={have}-"]


@pytest.mark.parametrize("left, ranges", [
    (lambda content: content, ["bytes=4096000-"]),                         # whole: one question, no body
    (lambda content: b"x" * 1000, ["bytes=1000-", None]),                  # another file's: all of it again
    (lambda content: content + b"x", ["bytes=4096001-", None]),            # too long: likewise
])
def test_a_part_that_is_whole_is_used_and_a_wrong_one_replaced(place, hub, big, left, ranges):
    part(place, big).parent.mkdir(parents=True)
    part(place, big).write_bytes(left(big))
    assert len(big) == 4096000
    assert place.gets() == {"the weights.bin": big}
    assert hub.asked("GET", "the weights.bin") == ranges


@pytest.mark.fault(27)
def test_wrong_bytes_from_a_url_are_refused_and_kept_nowhere(place, hub, big):
    wrong = hub.instead["the weights.bin"] = big[::-1]
    assert f"the weights.bin has sha256 {sha256(wrong)}, not {sha256(big)}" in place.refuses()
    assert not part(place, big).exists()
    assert len(hub.requests) == 1


class WithoutLength(Handler):
    """Answers as HTTP/1.0 did: a body ends where the connection does."""

    protocol_version = "HTTP/1.0"

    def begin(self, status, headers):
        super().begin(status, {key: value for key, value in headers.items() if key != "Content-Length"})


@pytest.mark.fault(27)
def test_a_cut_body_whose_length_was_not_told_is_asked_for_again(place, hub, big):
    hub.RequestHandlerClass = WithoutLength
    hub.faults["GET", "the weights.bin"] = ["cut", "cut"]
    assert place.gets() == {"the weights.bin": big}
    assert hub.asked("GET", "the weights.bin") == [None, None, None]


def test_wrong_bytes_whose_length_was_not_told_are_refused_in_the_end(place, hub, big):
    hub.RequestHandlerClass = WithoutLength
    wrong = hub.instead["the weights.bin"] = big[::-1]
    assert f"the weights.bin has sha256 {sha256(wrong)}, not {sha256(big)} (5 tries)" in place.refuses()
    assert not part(place, big).exists()


def test_a_url_that_is_not_there_is_named_and_not_asked_for_again(place, hub, big):
    del hub.plain["the weights.bin"]
    assert f"url {hub.url}/plain/: the weights.bin: HTTP Error 404: Not Found" in place.refuses()
    assert len(hub.requests) == 1


def test_a_url_without_a_scheme_is_named(place):
    place.declare("base_models", "remote", {"url": "example.org/x", "licence": "none", "sha256": {"a": "0" * 64}})
    assert "unknown url type: 'example.org/x/a'" in place.refuses()
