"""Every awkward file of the collection: what its manifest expects, alone and among others."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytestmark = pytest.mark.slow

# Not accepted by the wire contract, whatever their manifest says of decoders.
FOREIGN = {"HEIF", "JPEG2000", "JP2"}
REFUSALS = {413, 415, 422}
GROUP = 40


@dataclass
class Awkward:
    """A file, what is known of it, and what it got alone."""

    row: dict[str, str]
    data: bytes
    status: int
    body: Any

    @property
    def name(self) -> str:
        return self.row["file"]

    def is_as_expected(self) -> bool:
        row = self.row
        side = min(int(row["width"] or 9), int(row["height"] or 9))
        if row["bytes"] == "0":
            return self.status == 400
        if row["format"] in FOREIGN:
            return self.status == 415
        if row["expect"] == "reject" or side < 2:
            return self.status in REFUSALS
        if row["expect"] == "decode":
            return self.status == 200
        return self.status == 200 or self.status in REFUSALS


@pytest.fixture(scope="module")
def files(served: Any, shared_dir: Path) -> Iterator[list[Awkward]]:
    found = []
    with (
        zipfile.ZipFile(shared_dir / "data" / "awkward_public.zip") as pack,
        httpx.Client(timeout=60) as client,
    ):
        for row in csv.DictReader(io.TextIOWrapper(pack.open("manifest.csv"))):
            data = pack.read(row["file"])
            answer = client.post(served.url + "/embed", content=data)
            found.append(Awkward(row, data, answer.status_code, answer.json()))
    assert len(found) > 300
    yield found
    assert httpx.get(served.url + "/readyz").status_code == 200


def test_every_awkward_file_gets_a_vector_or_a_clear_refusal(files: list[Awkward]) -> None:
    wrong = [(file.name, file.status) for file in files if not file.is_as_expected()]
    assert wrong == []
    for file in files:
        if file.status != 200:
            assert file.body["error"]["message"].endswith(".")


def test_a_vector_is_of_the_whole_upright_picture(files: list[Awkward]) -> None:
    wrong = []
    for file in files:
        row = file.row
        if file.status != 200 or not (row["upright_width"] and row["upright_height"]):
            continue
        pixels = int(row["upright_width"]) * int(row["upright_height"])
        vector = file.body["data"][0]["embedding"]
        if file.body["usage"]["pixels"] != pixels or abs(np.linalg.norm(vector) - 1) > 1e-5:
            wrong.append((file.name, file.body["usage"]["pixels"], pixels))
    assert wrong == []


def test_among_others_each_gets_what_it_got_alone(served: Any, files: list[Awkward]) -> None:
    with httpx.Client(timeout=60) as client:
        for first in range(0, len(files), GROUP):
            group = [file for file in files[first : first + GROUP] if file.data]
            form = [("images", (file.name, file.data)) for file in group]
            answer = client.post(served.url + "/embed", files=form)
            assert answer.status_code == 200
            for file, item in zip(group, answer.json()["data"], strict=True):
                if file.status == 200:
                    alone = file.body["data"][0]["embedding"]
                    assert np.abs(np.subtract(item["embedding"], alone)).max() < 1e-5, file.name
                else:
                    assert item["error"]["code"] == file.body["error"]["code"], file.name
