import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from amdim_clients.images import Preprocess
from amdim_training.data import load_images
from amdim_training.errors import DataError
from amdim_training.sources import UNLABELED, Row, hub_rows, hub_split, open_source

TRAIN, TEST = frozenset({"train"}), frozenset({"val", "test"})
SIDE = Preprocess(image_size=32, resize=32)


def picture(value: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(value))


def labels(rows) -> list[int]:
    return [label for _, _, label in rows]


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        records = rng.integers(0, 256, (2, 3073), dtype=np.uint8)
        records[:, 0] = (3, 9)
        records.tofile(folder / f"{name}.bin")
    return folder.parent


def test_cifar10_is_read_in_its_binary_version(cifar10: Path) -> None:
    images = load_images([f"cifar10:{cifar10}"], SIDE)
    assert images.labels.tolist() == [3, 9] * 5
    record = np.fromfile(cifar10 / "cifar-10-batches-bin" / "data_batch_1.bin", np.uint8)[:3073]
    planes = record[1:].reshape(3, 32, 32)
    np.testing.assert_array_equal(images.pixels[0], planes.transpose(1, 2, 0))
    assert len(load_images([f"cifar10:{cifar10}"], SIDE, splits=("test",))) == 2
    inner = cifar10 / "cifar-10-batches-bin"
    assert labels(open_source(f"cifar10:{inner}", TEST)) == [3, 9]


def test_a_source_of_pixels_is_resized_as_pictures_are(cifar10: Path) -> None:
    small = load_images([f"cifar10:{cifar10}"], Preprocess(image_size=16, resize=18))
    assert small.pixels.shape == (10, 16, 16, 3)


def test_cifar100_gives_fine_labels(tmp_path: Path) -> None:
    records = np.zeros((3, 3074), dtype=np.uint8)
    records[:, 0], records[:, 1] = 7, (10, 50, 99)
    records.tofile(tmp_path / "train.bin")
    assert labels(open_source(f"cifar100:{tmp_path}", TRAIN)) == [10, 50, 99]


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_pickles_are_never_opened(tmp_path: Path, below: str) -> None:
    (tmp_path / below).mkdir(exist_ok=True)
    (tmp_path / below / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DataError, match="pickled and never opened"):
        list(open_source(f"cifar10:{tmp_path}", TRAIN))


def test_a_cut_off_or_missing_file_is_named(cifar10: Path) -> None:
    path = cifar10 / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin is cut off"):
        list(open_source(f"cifar10:{cifar10}", TRAIN))
    path.unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin cannot be read"):
        list(open_source(f"cifar10:{cifar10}", TRAIN))


def test_stl10_joins_unlabelled_pictures_and_turns_its_columns(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(1)
    upright = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    columns = upright.transpose(2, 1, 0)  # one channel after the other, column by column
    for name, count in (("train", 2), ("unlabeled", 3), ("test", 1)):
        np.stack([columns] * count).tofile(folder / f"{name}_X.bin")
    np.array([1, 10], dtype=np.uint8).tofile(folder / "train_y.bin")
    np.array([4], dtype=np.uint8).tofile(folder / "test_y.bin")
    rows: list[Row] = list(open_source(f"stl10:{tmp_path}", TRAIN))
    assert labels(rows) == [0, 9, UNLABELED, UNLABELED, UNLABELED]
    for _, pixels, _ in rows:
        np.testing.assert_array_equal(pixels, upright)
    assert labels(open_source(f"stl10:{tmp_path}", TEST)) == [3]
    assert labels(open_source(f"stl10-labelled:{tmp_path}", TRAIN)) == [0, 9]
    images = load_images([f"stl10:{tmp_path}"], Preprocess(image_size=96, resize=96))
    assert len(images.labelled()) == 2 and images.labelled().labels.tolist() == [0, 9]
    np.array([1], dtype=np.uint8).tofile(folder / "train_y.bin")
    with pytest.raises(DataError, match="2 pictures, and there are 1 labels"):
        list(open_source(f"stl10:{tmp_path}", TRAIN))


def test_tiny_imagenet_reads_its_validation_list(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for place, wnid in enumerate(("n02", "n01")):
        save(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", place)
        save(root / "val" / "images" / f"val_{place}.JPEG", place)
    (root / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n"
    )
    assert labels(open_source(f"tiny-imagenet:{tmp_path}", TRAIN)) == [0, 1]
    assert labels(open_source(f"tiny-imagenet:{tmp_path}", TEST)) == [1, 0]


def test_imagenets_validation_classes_are_numbered_as_its_training_ones(tmp_path: Path) -> None:
    for wnid in ("n01", "n02", "n03"):
        save(tmp_path / "train" / wnid / "a.JPEG", 1)
    save(tmp_path / "val" / "n03" / "b.JPEG", 1)
    assert labels(open_source(f"imagenet:{tmp_path}", TRAIN)) == [0, 1, 2]
    assert labels(open_source(f"imagenet:{tmp_path}", TEST)) == [2]


def test_places205_is_read_by_its_lists(tmp_path: Path) -> None:
    pictures = tmp_path / "data" / "vision" / "torralba" / "deeplearning" / "images256"
    save(pictures / "a" / "abbey" / "x.jpg", 1)
    lists = tmp_path / "trainvalsplit_places205"
    lists.mkdir()
    (lists / "train_places205.csv").write_text("a/abbey/x.jpg 0\na/abbey/missing.jpg 204\n")
    images = load_images([f"places205:{tmp_path}"], SIDE)
    assert images.labels.tolist() == [0]
    assert [Path(name).name for name in images.skipped] == ["missing.jpg"]
    (lists / "train_places205.csv").write_text("a/abbey/x.jpg\n")
    with pytest.raises(DataError, match="needs a picture and its class"):
        list(open_source(f"places205:{tmp_path}", TRAIN))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch) -> Callable[..., None]:
    """Fills a hub cache as a download would, and takes the network away."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def add(name: str, files: dict[str, list[dict[str, object]]]) -> None:
        commit = "0123456789abcdef0123456789abcdef01234567"
        root = cache / f"datasets--{name.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        for file, rows in files.items():
            path = root / "snapshots" / commit / file
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)

    return add


def test_a_hub_data_set_is_read_from_its_parquet_files(hub_cache) -> None:
    def rows(*numbers: int) -> list[dict[str, object]]:
        return [{"img": {"bytes": picture(n), "path": None}, "fine_label": n} for n in numbers]

    hub_cache(
        "uoft-cs/cifar100",
        {
            "cifar100/train-00000-of-00002.parquet": rows(1, 2),
            "cifar100/train-00001-of-00002.parquet": rows(3),
            "cifar100/test-00000-of-00001.parquet": rows(4),
        },
    )
    for source in ("cifar100", "hf:uoft-cs/cifar100"):
        images = load_images([source], SIDE)
        assert images.labels.tolist() == [1, 2, 3]
        assert images.pixels[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert labels(open_source("cifar100", TEST)) == [4]


def test_a_broken_or_missing_picture_of_the_hub_is_skipped_and_counted(hub_cache) -> None:
    rows = [
        {"image": {"bytes": picture(5), "path": "good.png"}, "label": 1},
        {"image": {"bytes": b"no picture", "path": "bad.png"}, "label": 0},
        {"image": None, "label": -1},
    ]
    hub_cache("some/set", {"data/train-00000-of-00001.parquet": rows})
    images = load_images(["hf:some/set"], SIDE)
    assert images.labels.tolist() == [1] and images.skipped == ("bad.png", "")


def test_what_the_hub_does_not_have_is_said(hub_cache) -> None:
    with pytest.raises(DataError, match="hf:no/where cannot be had from the hub or its cache"):
        open_source("hf:no/where", TRAIN)
    with pytest.raises(DataError, match="cannot be had"):
        open_source("hf:not a name", TRAIN)
    hub_cache("some/set", {"data/train-00000-of-00001.parquet": [{"x": 1}]})
    with pytest.raises(DataError, match=r"no Parquet file of test or val; its splits: train"):
        open_source("hf:some/set", TEST)


def test_a_revision_is_passed_on(tmp_path: Path) -> None:
    asked: list[dict[str, object]] = []

    def download(name: str, **options: object) -> str:
        asked.append({"name": name, **options})
        return str(tmp_path)

    with pytest.raises(DataError, match="its splits: none"):
        hub_rows("some/set@v1.2", TRAIN, download=download)
    assert asked[0]["name"] == "some/set" and asked[0]["revision"] == "v1.2"
    assert asked[0]["repo_type"] == "dataset" and asked[0]["allow_patterns"] == ["*.parquet"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00005-abc.parquet", "train"),
        ("plain_text/validation-00000-of-00001.parquet", "val"),
        ("default/partial-train/0000.parquet", "partial-train"),
        ("default/test/0000.parquet", "test"),
        ("train.parquet", "train"),
    ],
)
def test_splits_follow_the_hubs_file_names(path: str, split: str) -> None:
    assert hub_split(Path(path)) == split


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar11", "no data 'cifar11'; known are .*cifar100.*stl10"),
        ("cifar11:somewhere", "known are"),
        ("stl10", "say stl10:FOLDER"),
        ("stl10:/no/such/folder", "there is no folder /no/such/folder"),
        ("stl10:", r"there is no folder \(none named\)"),
        ("../packs/none.parquet", r"there is no file ../packs/none\.parquet"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(source, TRAIN)
