"""Index with windows, region search, map, comparison and duplicates: commands on a real model."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from amdim_clients.lance_index import open_index


@pytest.fixture(scope="session")
def windows_repository(repository):
    """A repository that has a model of windows beside its encoder."""
    if not (repository / "amdim_windows").is_dir():
        missing = f"needs a model at {repository}/amdim_windows"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return repository


@pytest.fixture
def place(photo_folder, windows_repository, tmp_path, run_amdim):
    for name in ("broken.jpg", "cut.png"):
        (photo_folder / name).unlink()
    options = ("--db", tmp_path / "db", "--repository", windows_repository)
    code, out, err = run_amdim("index", photo_folder, "--windows", "--scales", "1,2", *options)
    assert (code, err) == (0, "")
    assert "20 added, 0 unchanged, 0 removed, 0 skipped" in out
    assert "windows, " in out
    assert "kB a picture" in out
    return options


def test_regions_are_found_drawn_and_told(
    place, photo_folder, windows_repository, tmp_path, run_amdim
):
    query = photo_folder / "class1" / "04.jpg"
    drawn = ("--sheet", tmp_path / "s.png", "--html", tmp_path / "s.html", "--copy-to", tmp_path)
    code, out, err = run_amdim(
        "search", query, *place, "--region", "0.3,0.2,0.7,0.9", "--json", "--maps", *drawn, "-k", 4
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["region"] == [0.3, 0.2, 0.7, 0.9]
    best = found["neighbors"][0]
    assert best["path"] == str(query)
    assert best["score"] > 0.6
    assert (best["width"], best["height"]) == (120, 90)
    assert len(best["map"]) == len(best["map"][0]) == 7
    x0, _, x1, _ = best["box"]
    assert x0 < 0.5 < x1
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 4 * 176
    page = (tmp_path / "s.html").read_text()
    assert page.count("<figure") == 5
    assert "4 pictures copied" in err
    assert (tmp_path / "001_04.jpg").read_bytes() == query.read_bytes()


def test_indexed_pictures_are_sought_without_a_model(place, photo_folder, tmp_path, run_amdim):
    queries = [photo_folder / "class1" / name for name in ("04.jpg", "07.jpg")]
    elsewhere = ("--db", tmp_path / "db", "--repository", tmp_path / "nowhere")
    code, out, err = run_amdim("search", *queries, "--not", queries[1], *elsewhere, "-k", 3)
    assert code == 0, err
    assert out.splitlines()[0].endswith("04.jpg")
    where = ("--where", f"path={photo_folder / 'class2'}", "--where", "width>=100")
    code, out, _ = run_amdim("search", queries[0], *elsewhere, *where, "-k", 30)
    assert code == 0
    assert len(out.splitlines()) == 6
    assert all("/class2/" in line for line in out.splitlines())


def test_gateway_and_engine_give_the_same_windows(
    place, photo_folder, windows_repository, served, tmp_path, run_amdim
):
    there = tmp_path / "there"
    options = ("--windows", "--scales", "1,2", "--url", served)
    code, out, err = run_amdim("index", photo_folder, "--db", there, *options)
    assert (code, err) == (0, "")
    assert "20 added" in out
    mine, theirs = open_index(tmp_path / "db"), open_index(there)
    mine.space.check(theirs.space)
    keys = [row.key for row in mine.rows("/")]
    for key, windows in mine.windows(keys).items():
        other = theirs.windows([key])[key]
        np.testing.assert_allclose(windows.boxes, other.boxes, atol=1e-6)
        np.testing.assert_allclose(
            windows.vectors.astype(float), other.vectors.astype(float), atol=2e-3
        )
    query = photo_folder / "class1" / "04.jpg"
    for where in (("--url", served), ("--repository", windows_repository)):
        region = ("--region", "0.2,0.2,0.8,0.8", "-k", 1)
        code, out, _ = run_amdim("search", query, "--db", there, *region, *where)
        assert code == 0
        assert out.split()[-1] == str(query)


def test_later_runs_keep_to_the_windows_the_index_has(place, photo_folder, run_amdim):
    code, out, _ = run_amdim("index", photo_folder, *place)
    assert code == 0
    assert "0 added, 20 unchanged" in out
    for wrong in (("--no-windows",), ("--windows", "--scales", "1,3"), ("--stride", 2)):
        code, _, err = run_amdim("index", photo_folder, *place, *wrong)
        assert code == 1
        assert "make a new index" in err


def test_collection_commands(place, photo_folder, windows_repository, tmp_path, run_amdim):
    db = place[:2]
    copy = photo_folder / "class0" / "again.jpg"
    with Image.open(photo_folder / "class0" / "03.jpg") as picture:
        picture.save(copy, quality=60)
    assert run_amdim("index", photo_folder, *place)[0] == 0
    code, out, _ = run_amdim("duplicates", *db, "--json", "--threshold", 0.95)
    assert code == 0
    group = json.loads(out)["groups"][0]
    assert group["paths"] == [str(photo_folder / "class0" / "03.jpg"), str(copy)]
    assert run_amdim("map", *db, "-o", tmp_path / "map.png")[0] == 0
    with Image.open(tmp_path / "map.png") as plane:
        assert plane.width == plane.height
    assert run_amdim("map", *db, "-o", tmp_path / "map.json", photo_folder / "class1")[0] == 0
    assert len(json.loads((tmp_path / "map.json").read_text())["points"]) == 7
    code, out, _ = run_amdim("compare", copy, group["paths"][0], *place[2:])
    assert code == 0
    assert float(out.split()[1]) > 0.9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("search", "{query}", "--region", "0,0,2,1"), "is not inside it"),
        (("search", "{query}", "--where", "size>1"), "no field size"),
        (("search", "{query}", "--url", "http://127.0.0.1:9", "--region", "0,0,1,1"), "no answer"),
        (("map", "-o", "map.gif"), "must end in .png or .json"),
        (("map", "-o", "map.png", "/nowhere"), "no pictures below /nowhere"),
    ],
)
def test_mistakes_are_told_in_a_sentence(place, photo_folder, run_amdim, arguments, sentence):
    query = str(photo_folder / "class1" / "04.jpg")
    filled = [argument.format(query=query) for argument in arguments]
    code, out, err = run_amdim(*filled, *place[:2])
    assert (code, out) == (1, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
