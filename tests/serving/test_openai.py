"""The OpenAI-compatible face, driven by OpenAI's own client against a real server process."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

openai = pytest.importorskip("openai")


@pytest.fixture
def client(served: Any) -> Any:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def uri(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()


def test_the_official_client_gets_the_vectors_of_embed(
    client: Any, served: Any, make_picture: Any
) -> None:
    pictures = [make_picture(seed=seed) for seed in range(3)]
    answer = client.embeddings.create(model="amdim", input=[uri(one) for one in pictures])
    assert answer.model == "amdim"
    assert [item.index for item in answer.data] == [0, 1, 2]
    for item, picture in zip(answer.data, pictures, strict=True):
        own = httpx.post(served.url + "/embed", content=picture).json()["data"][0]["embedding"]
        np.testing.assert_allclose(item.embedding, own, atol=1e-6)
    numbers = client.embeddings.create(
        model="amdim", input=uri(pictures[0]), encoding_format="float"
    )
    np.testing.assert_array_equal(
        np.float32(numbers.data[0].embedding), np.float32(answer.data[0].embedding)
    )


def test_an_image_may_be_an_object(client: Any, make_picture: Any) -> None:
    answer = client.embeddings.create(
        model="amdim", input=[{"image": uri(make_picture())}], extra_body={"modality": "image"}
    )
    assert len(answer.data[0].embedding) == 12


@pytest.mark.parametrize(
    ("status", "call"),
    [
        (400, {"input": "a text"}),
        (400, {"input": [[1, 2, 3]]}),
        (400, {"input": [{"text": "a"}]}),
        (400, {"input": "data:image/png;base64,!!"}),
        (415, {"input": "data:image/png;base64,aGVsbG8="}),
        (404, {"input": "data:image/png;base64,aGVsbG8=", "model": "clip"}),
        (400, {"input": "data:image/png;base64,aGVsbG8=", "dimensions": 64}),
    ],
)
def test_errors_are_the_official_clients_own(client: Any, status: int, call: Any) -> None:
    with pytest.raises(openai.APIStatusError) as failure:
        client.embeddings.create(**{"model": "amdim", **call})
    assert failure.value.status_code == status
    assert failure.value.body["message"].endswith(".")
    assert failure.value.body["type"] == "invalid_request_error"


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["amdim"]
    assert client.models.retrieve("amdim").id == "amdim"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("clip")
