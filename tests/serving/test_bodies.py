from __future__ import annotations

import asyncio
import base64
import json
import string
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amdim_serving.bodies import BodyReader, split_multipart
from amdim_serving.errors import ERRORS, OverloadedError, RequestError
from amdim_serving.heads import Head
from amdim_serving.limits import Limits
from amdim_serving.negotiation import choose_type

JSON, NPY = "application/json", "application/x-npy"


def form(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    pieces = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in parts
    ]
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


@given(st.lists(st.tuples(st.sampled_from(["images", "outputs"]), st.binary(max_size=200))))
def test_parts_come_back_as_they_went_in(parts: list[tuple[str, bytes]]) -> None:
    body = form(*parts, boundary="a-boundary-that-no-part-holds")
    got = split_multipart(body, b"multipart/form-data; boundary=a-boundary-that-no-part-holds")
    assert [(part.name, bytes(part.data)) for part in got] == parts


def test_a_part_may_hold_what_looks_like_a_boundary() -> None:
    data = b"\r\n--\r\n--bb\r\n-\r\n--"
    got = split_multipart(form(("images", data)), b'multipart/form-data; boundary="b"')
    assert [bytes(part.data) for part in got] == [data]


@pytest.mark.parametrize("body", [b"", b"--b", b"--b\r\n", form(("a", b"x"))[:-6], b"garbage"])
def test_a_cut_form_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as failure:
        split_multipart(body, b"multipart/form-data; boundary=b")
    assert failure.value.code == "bad_request"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (b"", JSON),
        (b"*/*", JSON),
        (b"application/*", JSON),
        (b"application/x-npy", NPY),
        (b"application/x-npy;q=0.5, application/json;q=0.4", NPY),
        (b"text/html, application/x-npy;q=0.1, */*;q=0.01", NPY),
        (b"Application/JSON", JSON),
    ],
)
def test_the_preferred_type_is_chosen(accept: bytes, chosen: str) -> None:
    assert choose_type(accept, (JSON, NPY)) == chosen


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
request_bodies = st.fixed_dictionaries(
    {"images": st.lists(st.fixed_dictionaries({"data": json_values}), max_size=3) | json_values},
    optional={
        "outputs": st.lists(st.sampled_from(["embedding", "global", "logits"])) | json_values,
        "normalize": json_values,
        "dtype": st.sampled_from(["float32", "float16"]) | json_values,
        "encoding_format": st.sampled_from(["float", "base64"]) | json_values,
        "on_error": st.sampled_from(["item", "fail"]) | json_values,
        "model": json_values,
    },
)


def test_no_json_body_is_a_fault_of_ours(client_for: Any, make_picture: Any) -> None:
    good = base64.b64encode(make_picture()).decode()

    async def main() -> None:
        async with client_for() as client:
            loop = asyncio.get_running_loop()

            @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
            @given(request_bodies, st.booleans())
            def check(body: dict[str, Any], real: bool) -> None:
                if real and isinstance(body["images"], list):
                    body = {**body, "images": [*body["images"], {"data": good}]}
                answer = asyncio.run_coroutine_threadsafe(
                    client.post(
                        "/embed",
                        content=json.dumps(body),
                        headers={"Content-Type": "application/json"},
                    ),
                    loop,
                ).result(60)
                if answer.status_code != 200:
                    code = answer.json()["error"]["code"]
                    assert answer.status_code == ERRORS[code].status < 500

            await asyncio.to_thread(check)

    asyncio.run(main())


def test_bodies_are_bounded_together_and_let_go_with_their_requests() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 60}

    async def main() -> None:
        reader = BodyReader(Limits(max_body_bytes=80, inflight_bytes=100))
        first, second, third = (Head(str(n), content_length=60) for n in range(3))
        assert len(await reader.read(receive, first)) == 60
        with pytest.raises(OverloadedError):
            await reader.read(receive, second)
        third.content_length = None  # as with a chunked body
        with pytest.raises(OverloadedError):
            await reader.read(receive, third)
        for head in (first, second, third):
            reader.release(head)
        assert len(await reader.read(receive, second)) == 60

    asyncio.run(main())
