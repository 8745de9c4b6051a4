"""What the server writes about itself: lines a machine reads, and nothing that is secret."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc

from amdim_serving.logs import JsonFormatter

Running = Callable[..., contextlib.AbstractContextManager[Any]]
SECRETS = ("key-of-a-user", "key-of-an-admin", "a-wrong-key", "query-secret", "head-secret")


def test_a_record_is_one_line_of_json_with_its_exception() -> None:
    stream = io.StringIO()
    to_stream = logging.StreamHandler(stream)
    to_stream.setFormatter(JsonFormatter())
    log = logging.Logger("amdim_serving.test")
    log.addHandler(to_stream)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("request %s failed", "r1", extra={"request_id": "r1"})
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said["request_id"] == "r1"
    assert said["level"] == "error"
    assert said["message"] == "request r1 failed"
    assert "ValueError: two\nlines" in said["exception"]
    assert said["time"].endswith("Z")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_each_request_has_a_line_and_no_line_holds_a_secret(
    running_server: Running,
    repository: Path,
    make_picture: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    log_format: str,
) -> None:
    monkeypatch.setenv("AMDIM_API_KEYS", "key-of-a-user")
    monkeypatch.setenv("AMDIM_ADMIN_KEYS", "key-of-an-admin")
    flags = ("--drain-delay", "0", "--access-log", "--log-format", log_format)
    user = {"Authorization": "Bearer key-of-a-user"}
    with running_server(repository, *flags) as server, httpx.Client() as client:
        url = server.url
        named = client.post(
            url + "/embed?outputs=query-secret",
            content=make_picture(),
            headers={**user, "X-Request-ID": "mine-1", "X-Other": "head-secret"},
        )
        assert named.headers["x-request-id"] == "mine-1"
        good = client.post(url + "/embed", content=make_picture(), headers=user)
        client.get(url + "/model", headers={"X-API-Key": "a-wrong-key"})
        client.get(url + "/query-secret", headers=user)
        load = url + "/v2/repository/models/amdim/load"
        client.post(load, headers={"X-API-Key": "key-of-an-admin"})
        client.post(
            url + "/embed",
            content=b"{query-secret",
            headers={**user, "Content-Type": "application/json"},
        )
        with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as triton:
            pixels = np.zeros((1, 32, 32, 3), np.uint8)
            tensor = grpc.InferInput("images", list(pixels.shape), "UINT8")
            tensor.set_data_from_numpy(pixels)
            triton.infer(
                "amdim", [tensor], headers={"x-api-key": "key-of-a-user", "x-request-id": "g-1"}
            )
        assert server.stop() == 0
        log = server.log()
    assert not [secret for secret in SECRETS if secret in log]
    if log_format == "text":
        assert "/embed 200" in log
        return
    lines = [json.loads(line) for line in log.splitlines()]
    by_id = {line["request_id"]: line for line in lines if "request_id" in line}
    assert by_id["mine-1"]["code"] == 400
    served = by_id[good.headers["x-request-id"]]
    assert (served["route"], served["code"], served["protocol"]) == ("/embed", 200, "http")
    assert served["body_bytes"] == len(make_picture())
    assert 0 < served["seconds"] < 10
    assert (by_id["g-1"]["route"], by_id["g-1"]["code"]) == ("ModelInfer", 200)
    codes = {(line["route"], line["code"]) for line in by_id.values()}
    assert codes >= {("unmatched", 401), ("unmatched", 404)}


def test_without_the_flag_requests_are_not_logged(
    running_server: Running, repository: Path
) -> None:
    with running_server(repository, "--drain-delay", "0") as server:
        httpx.get(server.url + "/model")
        server.stop()
        assert "/model" not in server.log()
