from pathlib import Path

import numpy as np
import pytest

from amdim_clients.images import Preprocess
from amdim_training.data import ImageSet, load_images
from amdim_training.errors import DataError
from amdim_training.sources import UNLABELED

SIDE = Preprocess(image_size=32, resize=32)


def save_picture(path: Path, value: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 40), (value, 0, 0)).save(path)


def test_a_pack_gives_pixels_and_labels_in_order(write_pack) -> None:
    images = load_images([write_pack(count=10)], SIDE)
    assert images.pixels.shape == (10, 32, 32, 3)
    assert images.pixels.dtype == np.uint8
    assert images.labels.tolist() == [number % 4 for number in range(10)]


def test_only_the_asked_for_split_is_taken(write_pack) -> None:
    pack = write_pack(count=10, splits=("train", "val"))
    assert load_images([pack], SIDE).labels.tolist() == [0, 2, 0, 2, 0]
    assert load_images([pack], SIDE, splits=("val", "test")).labels.tolist() == [1, 3, 1, 3, 1]


def test_a_broken_picture_is_skipped_counted_and_logged(write_pack, caplog) -> None:
    pack = write_pack(count=3, extra=[b"no picture", b""])
    images = load_images([pack], SIDE)
    assert len(images) == 3
    assert images.skipped == ("extra0", "extra1")
    assert "extra0" in caplog.text


def test_sub_folders_are_classes_and_loose_files_have_none(tmp_path: Path) -> None:
    save_picture(tmp_path / "set" / "cats" / "a.png", 10)
    save_picture(tmp_path / "set" / "dogs" / "deep" / "b.jpg", 20)
    save_picture(tmp_path / "set" / "loose.png", 30)
    (tmp_path / "set" / "notes.txt").write_text("no picture")
    images = load_images([tmp_path / "set"], SIDE)
    assert images.labels.tolist() == [0, 1, UNLABELED]
    assert images.pixels[0, 0, 0, 0] == 10
    assert images.skipped == ()


def test_sources_are_joined(write_pack, tmp_path: Path) -> None:
    save_picture(tmp_path / "set" / "loose.png", 30)
    assert len(load_images([write_pack(count=5), tmp_path / "set"], SIDE)) == 6


def test_a_subset_is_fixed_by_its_seed() -> None:
    images = ImageSet(
        np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1).repeat(3, 3), np.arange(100)
    )
    first, second = images.subset(10), images.subset(10)
    assert first.labels.tolist() == second.labels.tolist()
    assert (first.pixels[:, 0, 0, 0] == first.labels).all()
    assert images.subset(1000) is images


@pytest.mark.parametrize("content", [None, b"PAR1 but no more", b""])
def test_a_missing_or_broken_pack_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "pack.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"pack\.parquet"):
        load_images([path], SIDE)


def test_a_pack_without_pictures_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column named image"):
        load_images([tmp_path / "x.parquet"], SIDE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture"):
        load_images([tmp_path / "empty"], SIDE)


def test_the_packs_splits_are_kept_apart(shared_dir) -> None:
    pack = shared_dir / "data" / "caltech101_s144.parquet"
    train = load_images([pack], SIDE)
    test = load_images([pack], SIDE, splits=("test",))
    assert (len(train), len(test)) == (2020, 1010)
    assert np.bincount(train.labels).tolist() == [20] * 101
