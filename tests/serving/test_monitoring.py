"""The dashboard and the alerts against a real Prometheus that scrapes a real gateway."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

Running = Callable[..., contextlib.AbstractContextManager[Any]]
_METRIC = re.compile(r"\b(?:amdim|process)_[a-z_]+\b")


def tool(name: str) -> str:
    """The path of a program of Debian's `prometheus`; without it skipped, and in CI failed."""
    unpacked = Path(__file__).parents[2] / ".venv/prometheus/usr/bin"
    found = shutil.which(name) or shutil.which(name, path=unpacked)
    if found is not None:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed")
    pytest.skip(f"needs {name} (scripts/unpack_prometheus.sh)")


def expressions(repo_root: Path) -> Iterator[tuple[str, str]]:
    """Every query of the dashboard and of the alerts, by where it stands."""
    dashboard = json.loads((repo_root / "deploy/grafana/gateway.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    rules = yaml.safe_load((repo_root / "deploy/prometheus/alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def wait_for(ask: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError, KeyError, IndexError):
            if answer := ask():
                return answer
        time.sleep(0.1)
    pytest.fail("it did not come about in time")


def test_every_metric_that_is_asked_for_exists(
    served: Any, repo_root: Path, make_picture: Callable[..., bytes]
) -> None:
    assert httpx.post(served.url + "/embed", content=make_picture()).status_code == 200
    shown = set(re.findall(r"^([a-z_]+)", httpx.get(served.url + "/metrics").text, re.MULTILINE))
    asked = {
        (where, name) for where, text in expressions(repo_root) for name in _METRIC.findall(text)
    }
    assert len(asked) > 20
    assert sorted((where, name) for where, name in asked if name not in shown) == []


def test_every_label_is_of_a_bounded_set(served: Any, make_picture: Callable[..., bytes]) -> None:
    def series() -> int:
        return httpx.get(served.url + "/metrics").text.count("\n")

    def ask_oddly(number: int) -> None:
        client.request(f"ODD{number}", f"{served.url}/path-{number}")
        client.post(f"{served.url}/embed?outputs=x{number}", content=make_picture())
        client.get(f"{served.url}/v2/models/model-{number}")

    with httpx.Client() as client:
        ask_oddly(0)
        before = series()
        for number in range(1, 20):
            ask_oddly(number)
        assert series() == before


@pytest.mark.parametrize(
    "check",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
)
def test_promtool_accepts_the_rules(repo_root: Path, check: tuple[str, ...]) -> None:
    ran = subprocess.run(
        [tool("promtool"), *check],
        cwd=repo_root / "deploy/prometheus",
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_promtool_accepts_the_metrics(served: Any, make_picture: Callable[..., bytes]) -> None:
    httpx.post(served.url + "/embed", content=make_picture())
    text = httpx.get(served.url + "/metrics").text
    ran = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""


def test_each_alert_is_tested(repo_root: Path) -> None:
    tests = yaml.safe_load((repo_root / "deploy/prometheus/alerts_test.yml").read_text())["tests"]
    told = {case["alertname"] for case in tests[1]["alert_rule_test"] if case["exp_alerts"]}
    named = {where for where, _ in expressions(repo_root) if where.startswith("alert ")}
    assert named == {f"alert {name}" for name in told}


@contextlib.contextmanager
def prometheus(folder: Path, rules: Path, target: str) -> Iterator[str]:
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "amdim", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}/api/v1/"
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.slow
def test_a_real_prometheus_scrapes_the_metrics_port(
    running_server: Running,
    repository: Path,
    repo_root: Path,
    tmp_path: Path,
    make_picture: Callable[..., bytes],
) -> None:
    flags = ("--metrics-port", "0", "--drain-delay", "0")
    with running_server(repository, *flags) as server, httpx.Client() as client:
        (port,) = re.findall(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", "".join(server.lines))
        own = f"http://127.0.0.1:{port}"
        assert client.get(server.url + "/metrics").status_code == 404
        assert client.get(own + "/embed").status_code == 404
        assert client.post(own + "/metrics").status_code == 405
        rules = repo_root / "deploy/prometheus/alerts.yml"
        with prometheus(tmp_path, rules, f"127.0.0.1:{port}") as api:

            def query(text: str) -> Any:
                answer = client.get(api + "query", params={"query": text}).json()
                assert answer["status"] == "success", (text, answer)
                return answer["data"]["result"]

            def scraped_after_the_second_half() -> bool:
                counted = query('amdim_images_total{outcome="ok"}')
                return bool(counted) and counted[0]["value"][1] == "20"

            wait_for(lambda: query("amdim_build_info"))
            for half in range(2):
                for _ in range(10):
                    client.post(server.url + "/embed", content=make_picture())
                if half == 0:
                    wait_for(lambda: query('amdim_images_total{outcome="ok"} >= 10'))
            wait_for(scraped_after_the_second_half)
            target = client.get(api + "targets").json()["data"]["activeTargets"][0]
            assert (target["health"], target["lastError"]) == ("up", "")
            for where, text in expressions(repo_root):
                filled = text.replace("$__rate_interval", "1m").replace("$instance", ".*")
                result = query(filled)
                if where.startswith("panel"):
                    assert result, f"{where} shows nothing"
                else:
                    assert result == [], f"{where} fires on a healthy gateway"
            rule_groups = wait_for(lambda: client.get(api + "rules").json()["data"]["groups"])
            assert {rule["health"] for rule in rule_groups[0]["rules"]} <= {"ok", "unknown"}
        assert server.stop() == 0
