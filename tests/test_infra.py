"""What describes the stack for containers is valid, asks for what it needs, and starts nothing as root or unasked."""

import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from infra import keys, work
from tests.project import ROOT

INFRA = ROOT / "infra"
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
POOLS = ("cpu", "gpu")


def resources() -> dict[str, dict]:
    files = sorted((INFRA / "kubernetes").glob("*.yaml"))
    return {f"{found['kind']}/{found['metadata']['name']}": found
            for path in files for found in YAML(typ="safe").load_all(path.read_text(encoding="utf-8"))}


def tool(name: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run([Path(sys.executable).parent / name, *arguments], capture_output=True, text=True, check=False)


def filled(template, values: dict):
    """A work pool's template with its variables, as Prefect's worker fills it in."""
    match template:
        case dict():
            return {key: filled(value, values) for key, value in template.items()}
        case list():
            return [filled(value, values) for value in template]
        case str() if re.fullmatch(r"\{\{ \w+ \}\}", template):
            return values[template[3:-3]]
        case str():
            return re.sub(r"\{\{ (\w+) \}\}", lambda found: values[found[1]], template)
    return template


def job(pool: str, **chosen) -> dict:
    template = json.loads((INFRA / f"kubernetes/pool-{pool}.json").read_text(encoding="utf-8"))
    values = {name: value.get("default") for name, value in template["variables"]["properties"].items()}
    values |= {"name": "run", "labels": {"a": "b"}, "env": {}, "command": ["prefect", "flow-run", "execute"]} | chosen
    return filled(template["job_configuration"]["job_manifest"], values)


def pods() -> dict[str, dict]:
    """The specification of every pod that the manifests and the pools' jobs make."""
    kept = {name: found["spec"]["template"]["spec"] for name, found in resources().items()
            if found["kind"] in ("Deployment", "StatefulSet")}
    return kept | {f"Job/{pool}": job(pool)["spec"]["template"]["spec"] for pool in POOLS}


# Docker


def test_compose_follows_its_schema(tmp_path):
    check = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    assert tool(*check, INFRA / "compose.yaml").returncode == 0
    broken = (INFRA / "compose.yaml").read_text(encoding="utf-8").replace("healthcheck:", "healthchek:", 1)
    (tmp_path / "compose.yaml").write_text(broken, encoding="utf-8")
    assert tool(*check, tmp_path / "compose.yaml").returncode == 1


def test_hadolint_finds_nothing_in_the_dockerfiles(tmp_path):
    assert tool("hadolint", *(INFRA / name for name in DOCKERFILES)).stdout == ""
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN pip install dvc\n", encoding="utf-8")
    assert {"DL3007", "DL3013"} <= set(re.findall(r"DL\d+", tool("hadolint", tmp_path / "Dockerfile").stdout))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_no_root_and_says_whether_it_lives(name):
    lines = (INFRA / name).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    assert sum(line.startswith("HEALTHCHECK") for line in lines) == 1
    base, = (line for line in lines if line.startswith("FROM"))
    assert re.search(r":[\w.-]+$", base) and not base.endswith(":latest")
    assert any("--require-hashes" in line for line in lines)


def test_secrets_stay_out_of_images_and_git():
    for name in (".dockerignore", ".gitignore"):
        assert {".stack", "infra/secrets"} <= {line.strip("/") for line in (ROOT / name).read_text().splitlines()}


def test_compose_opens_no_port_to_others_and_gives_each_service_its_own_secrets():
    compose = YAML(typ="safe").load(INFRA / "compose.yaml")
    services = compose["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 3 and all(port.startswith("127.0.0.1:") for port in ports)
    assert set(compose["secrets"]) == set(keys.FILES)
    assert "postgres" not in services["prefect"]["secrets"] + services["mlflow"]["secrets"]
    assert services["worker-cpu"]["secrets"] == services["worker-gpu"]["secrets"] == ["password", "dvc_key"]
    assert all("healthcheck" in services[name] for name in ("postgres", "prefect", "mlflow", "sftp"))
    text = (INFRA / "compose.yaml").read_text(encoding="utf-8")
    assert not re.search(r"PASSWORD: (?!/run/secrets)", text)
    asked = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert asked == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


# Kubernetes


def test_every_manifest_and_job_follows_the_schemas_of_kubernetes():
    found = [*resources().values(), *map(job, POOLS)]
    assert len(found) > 14
    for resource in found:
        kubernetes_validate.validate(resource, "1.37", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job("gpu") | {"specs": {}}, "1.37", strict=True)


def test_the_jobs_of_the_gpu_pool_alone_ask_for_a_gpu():
    gpus = {pool: job(pool)["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
            for pool in POOLS}
    assert gpus == {"cpu": None, "gpu": 1}
    assert job("gpu", gpus=4)["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"][
        "nvidia.com/gpu"] == 4


@pytest.mark.parametrize("name", pods())
def test_a_pod_is_no_root_has_limits_and_takes_secrets_from_the_secret(name):
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in pod["containers"] + pod.get("initContainers", []):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
        assert ":" in container["image"] and not container["image"].endswith(":latest")
        plain = {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}
        assert all(value.startswith(("/", "$(PASSWORD)", "evergreen:$(PASSWORD)")) for key, value in plain.items()
                   if "PASSWORD" in key or "AUTH" in key)


def test_the_jobs_have_the_environment_and_the_remote_of_a_worker():
    there = work.environment("http://prefect:4200", "http://mlflow:5000", Path("/etc/evergreen"), "$(PASSWORD)")
    for pool in POOLS:
        env = job(pool)["spec"]["template"]["spec"]["containers"][0]["env"]
        assert there.items() <= {entry["name"]: entry.get("value") for entry in env}.items()
    config = resources()["ConfigMap/dvc"]["data"]["config"]
    assert config == work.REMOTE.format(address="sftp:2222", user=keys.USER, secrets="/run/secrets")


def test_the_commands_of_the_containers_are_ones_that_the_programs_know():
    """Each module of ours that a container starts takes the words it is started with."""
    compose = YAML(typ="safe").load(INFRA / "compose.yaml")["services"]
    started = [service["command"] for service in compose.values() if "command" in service]
    started += [container["args"] for pod in pods().values() for container in pod["containers"] + pod.get(
        "initContainers", []) if container.get("args", [""])[0].startswith("infra.")]
    started += [json.loads(found) for name in DOCKERFILES for found in re.findall(
        r"^CMD (\[\"infra.*?\])", (INFRA / name).read_text(encoding="utf-8").replace("\\\n", ""), re.MULTILINE)]
    assert len(started) == 11
    for words in started:
        assert (ROOT / (words[0].replace(".", "/") + ".py")).exists()
        text = (ROOT / (words[0].replace(".", "/") + ".py")).read_text(encoding="utf-8")
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == []
