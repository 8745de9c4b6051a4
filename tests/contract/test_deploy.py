"""What deploy/ names exists: settings, ports, paths, metrics, extras. No container is run here."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from amdim_serving.metrics import Metrics
from amdim_serving.settings import Settings

SCHEMAS = "1.31"
"""Kubernetes' version whose schemas the manifests are held to."""
PORTS = {"AMDIM_PORT": 8000, "AMDIM_GRPC_PORT": 8001, "AMDIM_METRICS_PORT": 8002}


@pytest.fixture(scope="module")
def deploy(repo_root: Path) -> Path:
    return repo_root / "deploy"


@pytest.fixture(scope="module")
def dockerfile(deploy: Path) -> str:
    return (deploy / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def documents(deploy: Path) -> list[Any]:
    files = sorted((deploy / "kubernetes").glob("*.yaml"))
    assert len(files) == 3
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


@pytest.fixture(scope="module")
def compose(deploy: Path) -> Any:
    return yaml.safe_load((deploy / "compose.yaml").read_text())["services"]


def containers(documents: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Each pod's spec, and its only container."""
    for document in documents:
        spec = document["spec"]
        for pod in (spec.get("predictor"), spec.get("template", {}).get("spec")):
            if pod:
                yield pod, pod["containers"][0]


def test_every_setting_that_is_named_exists_and_holds_its_value(deploy: Path) -> None:
    names = {f"AMDIM_{field.upper()}" for field in Settings.model_fields}
    found = {
        (path.name, name)
        for path in deploy.rglob("*")
        if path.is_file() and path.suffix != ".json"
        for name in re.findall(r"\bAMDIM_[A-Z_]+\b", path.read_text())
    }
    assert len(found) > 10
    assert [(file, name) for file, name in found if name not in names] == []


def test_the_manual_names_every_setting_alert_and_metric(repo_root: Path) -> None:
    manual = (repo_root / "docs/operations.md").read_text()
    named = set(re.findall(r"\bAMDIM_[A-Z_]+\b", manual))
    assert named == {f"AMDIM_{field.upper()}" for field in Settings.model_fields}
    rules = yaml.safe_load((repo_root / "deploy/prometheus/alerts.yml").read_text())["groups"]
    assert [rule["alert"] for rule in rules[0]["rules"] if rule["alert"] not in manual] == []
    metrics = re.findall(r"^# TYPE (amdim_\w+)", Metrics().render().decode(), re.MULTILINE)
    own = [name for name in metrics if not name.endswith("_created")]
    assert len(own) > 8
    assert [name for name in own if name not in manual] == []


def test_each_containers_settings_are_accepted(
    documents: list[Any], compose: Any, dockerfile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = dict(re.findall(r"\b(AMDIM_[A-Z_]+)=(\S+)", dockerfile))
    given = [
        {item["name"]: item["value"] for item in pod["env"]} for _, pod in containers(documents)
    ]
    given += [compose[name]["environment"] for name in ("gateway", "gateway-triton")]
    assert len(given) == 4
    for environment in given:
        with monkeypatch.context() as patch:
            for name, value in (image | environment).items():
                patch.setenv(name, value)
            settings = Settings()
        assert (settings.port, settings.grpc_port, settings.metrics_port) == tuple(PORTS.values())


def test_ports_are_the_images(dockerfile: str, documents: list[Any], compose: Any) -> None:
    for name, port in PORTS.items():
        assert f"{name}={port}" in dockerfile
    exposed = {int(port) for port in re.findall(r"EXPOSE (.*)", dockerfile)[0].split()}
    assert exposed == set(PORTS.values())
    assert "127.0.0.1:8000/readyz" in dockerfile
    for _, container in containers(documents):
        assert {port["containerPort"] for port in container["ports"]} <= exposed
    for service in ("gateway", "gateway-triton"):
        assert {int(port.rsplit(":", 1)[1]) for port in compose[service]["ports"]} <= exposed
        assert all(port.startswith("127.0.0.1:") for port in compose[service]["ports"])


def test_the_drain_fits_into_the_grace_period(documents: list[Any], compose: Any) -> None:
    for pod, container in containers(documents):
        values = {item["name"]: item["value"] for item in container["env"]}
        drain_s = float(values["AMDIM_DRAIN_DELAY"]) + float(values["AMDIM_DRAIN_TIMEOUT"])
        assert pod["terminationGracePeriodSeconds"] > drain_s
    for service in ("gateway", "gateway-triton"):
        values = compose[service]["environment"]
        drain_s = float(values["AMDIM_DRAIN_DELAY"]) + float(values["AMDIM_DRAIN_TIMEOUT"])
        assert int(compose[service]["stop_grace_period"].rstrip("s")) > drain_s


def test_probes_ask_paths_that_need_no_key(documents: list[Any]) -> None:
    from amdim_serving.edge import _OPEN_PATHS

    asked = {
        container[probe]["httpGet"]["path"]
        for _, container in containers(documents)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        if probe in container
    }
    assert asked == {"/readyz", "/livez", "/v2/health/ready", "/v2/health/live"}
    assert asked <= _OPEN_PATHS


def test_nothing_runs_as_root_or_writes_its_image(
    documents: list[Any], compose: Any, dockerfile: str
) -> None:
    assert re.search(r"^USER 10001", dockerfile, re.MULTILINE)
    for pod, container in containers(documents):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert (pod.get("securityContext") or security)["runAsNonRoot"]
    assert all(compose[name]["read_only"] for name in ("gateway", "gateway-triton"))


def test_the_autoscalers_metric_exists(documents: list[Any]) -> None:
    (scaler,) = [document for document in documents if document["kind"].endswith("Autoscaler")]
    name = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f"\n{name} " in Metrics().render().decode()
    target = scaler["spec"]["scaleTargetRef"]["name"]
    assert target in [document["metadata"]["name"] for document in documents]


def test_the_image_installs_what_exists(repo_root: Path, dockerfile: str) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    extras = re.findall(r'"\.\[([a-z,]+)\]"', dockerfile)[0].split(",")
    assert set(extras) <= project["optional-dependencies"].keys()
    ignored = (repo_root / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    for kept in (line[1:] for line in ignored if line.startswith("!")):
        assert (repo_root / kept).exists(), kept
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for path in copied.split():
            assert (repo_root / path).exists(), path


def test_the_manifests_are_what_kubernetes_takes(documents: list[Any]) -> None:
    checked = []
    for document in documents:
        if document["kind"] == "InferenceService":  # KServe's own; what it makes is a pod
            spec = dict(document["spec"]["predictor"])
            del spec["minReplicas"], spec["maxReplicas"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
            document = pod
        kubernetes_validate.validate(document, SCHEMAS, strict=True)
        checked.append(document["kind"])
    assert sorted(checked) == [
        "Deployment",
        "HorizontalPodAutoscaler",
        "PersistentVolumeClaim",
        "Pod",
        "PodDisruptionBudget",
        "Service",
    ]


def test_a_misspelt_field_is_found(documents: list[Any]) -> None:
    deployment = next(one for one in documents if one["kind"] == "Deployment")
    wrong = deployment | {"spec": deployment["spec"] | {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, SCHEMAS, strict=True)
