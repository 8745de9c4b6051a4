"""Bytes that nobody meant: damaged pictures, tensors and requests. None is a fault of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from amdim_serving.errors import ERRORS

Picture = Callable[..., bytes]
SIDE = 32
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
bounded = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,  # a red run can be had again
    suppress_health_check=[HealthCheck.too_slow],
)


def run_check(client_for: Any, make_check: Callable[[Callable[..., httpx.Response]], Any]) -> None:
    """Runs a Hypothesis check on a thread, with a blocking `post` to one gateway in process."""

    async def main() -> None:
        async with client_for() as client:
            loop = asyncio.get_running_loop()

            def post(*args: Any, **keywords: Any) -> httpx.Response:
                call: Awaitable[httpx.Response] = client.post(*args, **keywords)
                return asyncio.run_coroutine_threadsafe(call, loop).result(60)  # type: ignore[arg-type]

            await asyncio.to_thread(make_check(post))
            assert "amdim_queue_images 0.0" in (await client.get("/metrics")).text

    asyncio.run(main())


def is_told(answer: httpx.Response) -> bool:
    """Whether a refusal is one of the table's, and not a fault of ours."""
    code = answer.json()["error"]["code"]
    return answer.status_code == ERRORS[code].status < 500


def test_a_damaged_picture_is_a_vector_or_a_refusal(client_for: Any, make_picture: Picture) -> None:
    whole = {kind: make_picture((40, 30), kind) for kind in FORMATS}
    damage = st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)), max_size=5
    )

    def make_check(post: Callable[..., httpx.Response]) -> Any:
        @bounded
        @given(st.sampled_from(FORMATS), damage, st.floats(0, 1), st.binary(max_size=20))
        def check(kind: str, changes: Any, kept: float, tail: bytes) -> None:
            data = bytearray(whole[kind])
            for where, new in changes:
                at = int(where * len(data))
                data[at : at + len(new)] = new
            body = bytes(data[: int(kept * len(data))]) + tail
            answer = post("/embed", content=body)
            if answer.status_code == 200:
                vector = answer.json()["data"][0]["embedding"]
                assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
            else:
                assert is_told(answer)

        return check

    run_check(client_for, make_check)


@st.composite
def infer_requests(draw: Any) -> tuple[bytes, dict[str, str]]:
    """A binary infer request, right or with one thing wrong, its parts cut anywhere."""
    count = draw(st.integers(0, 3))
    size = draw(st.sampled_from([count * SIDE * SIDE * 3, 0, 7]))
    tensor: dict[str, Any] = {
        "name": draw(st.sampled_from(["images", "image", ""])),
        "datatype": draw(st.sampled_from(["UINT8", "FP32", "BYTES", "X"])),
        "shape": draw(
            st.just([count, SIDE, SIDE, 3])
            | st.lists(st.integers(-(2**40), 2**40), max_size=5)
            | st.just("x")
        ),
        "parameters": {"binary_data_size": draw(st.just(size) | st.integers(-9, 2**40))},
    }
    document: Any = {"inputs": draw(st.just([tensor]) | st.just([]) | st.just([tensor] * 2))}
    if draw(st.booleans()):
        output = {"name": draw(st.sampled_from(["global", "logits"])), "parameters": None}
        output["parameters"] = draw(st.sampled_from([{"binary_data": True}, {}, [], 3]))
        document["outputs"] = [output]
    if draw(st.booleans()):
        document |= draw(
            st.dictionaries(st.text(max_size=6), st.none() | st.integers(), max_size=2)
        )
    head = json.dumps(document).encode()
    length = draw(st.just(len(head)) | st.integers(-3, len(head) + 3))
    body = head + bytes(size)
    body = body[: draw(st.just(len(body)) | st.integers(0, len(body)))]
    return body, {"Inference-Header-Content-Length": str(length)}


def test_a_binary_infer_request_is_answered_or_refused(client_for: Any) -> None:
    def make_check(post: Callable[..., httpx.Response]) -> Any:
        @bounded
        @given(infer_requests(), st.sampled_from(["amdim", "amdim_image"]))
        def check(request: tuple[bytes, dict[str, str]], model: str) -> None:
            body, headers = request
            answer = post(f"/v2/models/{model}/infer", content=body, headers=headers)
            assert answer.status_code < 500, (answer.text, body[:300], headers)
            if answer.status_code != 200:
                assert set(answer.json()) == {"error"}

        return check

    run_check(client_for, make_check)


@bounded
@given(data=st.binary(max_size=300))
def test_no_bytes_tensor_is_a_fault(data: bytes) -> None:
    from amdim_serving.errors import RequestError
    from amdim_serving.kserve import _split_files

    try:
        files = _split_files(memoryview(data), 2)
    except RequestError as error:
        assert error.code == "bad_request"
    else:
        assert len(files) == 2
        assert sum(4 + len(file) for file in files) == len(data)


@pytest.mark.slow
def test_nothing_that_the_openapi_document_allows_is_a_fault(served: Any) -> None:
    """Schemathesis makes requests of the document, valid and not; none is a 5xx."""
    schema = schemathesis.openapi.from_url(served.url + "/openapi.json")
    operations: list[Any] = [made.ok() for made in schema.get_all_operations()]  # type: ignore[union-attr]  # an invalid document fails here
    asked: dict[str, set[int]] = {}

    def check(operation: Any) -> None:
        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(base_url=served.url, timeout=60)
            assert answer.status_code < 500, (case.method, case.path, answer.text)
            asked.setdefault(operation.label, set()).add(answer.status_code)

        ask()

    for operation in operations:
        check(operation)
    assert len(asked) == len(operations) > 20
    assert 200 in asked["GET /model"]
    assert httpx.get(served.url + "/readyz").status_code == 200
