from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

# Not accepted by the wire contract, whatever their manifest says of decoders.
FOREIGN = {"HEIF", "JPEG2000", "JP2"}
REFUSALS = {413, 415, 422}


@pytest.mark.slow
def test_every_awkward_file_gets_a_vector_or_a_clear_refusal(served: Any, shared_dir: Path) -> None:
    wrong: list[tuple[str, int]] = []
    with (
        zipfile.ZipFile(shared_dir / "data" / "awkward_public.zip") as pack,
        httpx.Client(timeout=60) as client,
    ):
        rows = list(csv.DictReader(io.TextIOWrapper(pack.open("manifest.csv"))))
        for row in rows:
            answer = client.post(served.url + "/embed", content=pack.read(row["file"]))
            got, side = answer.status_code, min(int(row["width"] or 9), int(row["height"] or 9))
            if row["bytes"] == "0":
                good = got == 400
            elif row["format"] in FOREIGN:
                good = got == 415
            elif row["expect"] == "reject" or side < 2:
                good = got in REFUSALS
            elif row["expect"] == "decode":
                good = got == 200
            else:
                good = got == 200 or got in REFUSALS
            if not good:
                wrong.append((row["file"], got))
        assert client.get(served.url + "/readyz").status_code == 200
    assert len(rows) > 300
    assert wrong == []
