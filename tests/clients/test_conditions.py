from __future__ import annotations

import io

import pytest
from PIL import Image

from amdim_clients.conditions import Condition, all_hold, parse_conditions
from amdim_clients.errors import ConditionError
from amdim_clients.facts import PictureFacts, header_size

FACTS = PictureFacts(bytes=1000, modified=1_735_689_600, width=640, height=480, label="it's a cat")


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("bytes>999", True),
        ("bytes > 1000", False),
        ("width>=640", True),
        ("height!=480", False),
        ("modified>=2025-01-01", True),
        ("modified<2025-01-01T00:00:00+00:00", False),
        ("label=it's a cat", True),
        ("label!=dog", True),
        ("path=/a/b", True),
        ("path!=/a/bc", True),
        ("path=/a/b/c.tar", True),
    ],
)
def test_conditions_are_read_and_tried(text, holds):
    assert all_hold(parse_conditions([text]), "/a/b/c.tar#x.jpg", FACTS) is holds


def test_all_must_hold_and_what_is_unknown_meets_nothing():
    both = parse_conditions(["width>1", "label=dog"])
    assert not all_hold(both, "/x", FACTS)
    for text in ("label=x", "label!=x", "width<5", "width!=5"):
        assert not all_hold(parse_conditions([text]), "/x", PictureFacts())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bytes", "is no condition like"),
        ("label=", "is no condition like"),
        ("size>3", "no field size: use one of path, label"),
        ("width>wide", "compared with a whole number"),
        ("width>-1", "compared with a whole number"),
        ("modified>yesterday", "is no date like"),
        ("label>cat", "only be compared by = and !="),
    ],
)
def test_what_means_nothing_is_told(text, sentence):
    with pytest.raises(ConditionError, match=sentence):
        parse_conditions([text])


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_conditions(["path=photos"]) == (Condition("path", "=", str(tmp_path / "photos")),)


def test_header_size_is_that_of_the_upright_picture(photo_bytes):
    assert header_size(photo_bytes(0)) == (120, 90)
    assert header_size(b"no picture") is None
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (30, 20)).save(turned, "JPEG", exif=exif)
    assert header_size(turned.getvalue()) == (20, 30)
