from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from amdim_clients.matching import amdim_score


@pytest.fixture
def ask(served: Any) -> Any:
    def post(query: bytes, candidates: list[bytes], **options: str) -> httpx.Response:
        files = [("query", query), *(("candidates", one) for one in candidates)]
        return httpx.post(served.url + "/match", files=files, data=options)

    return post


def test_a_picture_matches_itself_best_and_order_is_kept(ask: Any, make_picture: Any) -> None:
    pictures = [make_picture(seed=seed) for seed in range(4)]
    answer = ask(pictures[2], pictures)
    assert answer.status_code == 200
    body = answer.json()
    assert body["score"] == "amdim"
    assert body["encoder_digest"].startswith("sha256:")
    data = body["data"]
    assert [entry["index"] for entry in data] == [0, 1, 2, 3]
    assert max(data, key=lambda entry: entry["cosine"])["index"] == 2
    assert data[2]["cosine"] == pytest.approx(1, abs=1e-5)
    grid = np.array(data[0]["map"])
    assert grid.shape == (7, 7)
    assert grid[tuple(data[0]["cell"])] == grid.max() == pytest.approx(data[0]["score"])
    x0, y0, x1, y1 = data[0]["box"]
    assert 0 <= x0 < x1 <= 1
    assert 0 <= y0 < y1 <= 1
    assert "region_map" not in data[0]


def test_the_score_is_that_of_the_raw_vectors(ask: Any, served: Any, make_picture: Any) -> None:
    pictures = [make_picture(seed=seed) for seed in (5, 6)]
    got = ask(pictures[0], pictures[1:]).json()["data"][0]["map"]
    options = {"outputs": "global,local7", "normalize": "false"}
    query, candidate = (
        httpx.post(served.url + "/embed", content=one, params=options).json()["data"][0]
        for one in pictures
    )
    want = amdim_score(np.array(query["global"]), np.array(candidate["local7"]))
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_a_region_adds_its_own_map(ask: Any, make_picture: Any) -> None:
    picture = make_picture((100, 100))
    entry = ask(picture, [picture], region="0.4,0.4,0.6,0.6", score="cosine").json()["data"][0]
    assert np.array(entry["region_map"]).shape == (7, 7)
    assert entry["region_score"] <= 1 + 1e-6
    assert len(entry["region_box"]) == 4


def test_a_bad_candidate_fails_alone_and_a_bad_query_fails_all(ask: Any, make_picture: Any) -> None:
    good = make_picture()
    data = ask(good, [b"no picture", good]).json()["data"]
    assert data[0]["error"]["code"] == "unsupported_media_type"
    assert data[1]["cosine"] == pytest.approx(1, abs=1e-5)
    assert ask(b"no picture", [good]).status_code == 415


@pytest.mark.parametrize(
    "options",
    [
        {"region": "0.5,0.5,0.4,0.6"},
        {"region": "0,0,0.001,1"},
        {"region": "a,b,c,d"},
        {"region": "0,0,1"},
        {"region": "nan,0,1,1"},
        {"score": "euclid"},
        {"windows": "true"},
    ],
)
def test_what_cannot_be_asked_is_400(ask: Any, make_picture: Any, options: Any) -> None:
    wide = make_picture((400, 100))  # its edges lie outside the centre crop
    assert ask(wide, [wide], **options).status_code == 400


def test_json_is_the_same(ask: Any, served: Any, make_picture: Any) -> None:
    pictures = [make_picture(seed=seed) for seed in (7, 8)]
    encoded = [{"data": base64.b64encode(one).decode()} for one in pictures]
    body = {"query": encoded[0], "candidates": encoded, "region": [0.4, 0.4, 0.6, 0.6]}
    answer = httpx.post(served.url + "/match", json=body)
    form = ask(pictures[0], pictures, region="0.4,0.4,0.6,0.6")
    for one, other in zip(answer.json()["data"], form.json()["data"], strict=True):
        np.testing.assert_allclose(one["map"], other["map"], rtol=1e-5)
        np.testing.assert_allclose(one["region_map"], other["region_map"], rtol=1e-5)
    assert httpx.post(served.url + "/match", json={"query": encoded[0]}).status_code == 400
    assert httpx.post(served.url + "/match", json={**body, "candidates": []}).status_code == 400
