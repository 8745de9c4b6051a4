from pathlib import Path

import numpy as np
import pytest

from amdim_clients.images import Preprocess
from amdim_training.errors import DataError
from amdim_training.evaluation_data import open_dataset
from amdim_training.named_sources import FORMATS, SPLITS

SIDE = Preprocess(image_size=32, resize=32)


def write_cifar(folder: Path, labels: list[int]) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        records = rng.integers(0, 256, (len(labels), 3073), dtype=np.uint8)
        records[:, 0] = labels
        records.tofile(folder / f"{name}.bin")
    return folder


def test_a_name_with_a_folder_is_a_data_set(tmp_path: Path) -> None:
    dataset = open_dataset(f"cifar10:{write_cifar(tmp_path / 'c', [3, 9])}")
    assert dataset.name == "cifar10"
    assert [task.name for task in dataset.tasks] == ["test->train"]
    assert dataset.load("train", SIDE).labels.tolist() == [3, 9] * 5
    assert dataset.load("test", SIDE).labels.tolist() == [3, 9]


def test_stl10_is_scored_on_its_labelled_images_alone(tmp_path: Path) -> None:
    # no unlabeled_X.bin: whoever reads it, fails
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        rng.integers(0, 256, (4, 96 * 96 * 3), dtype=np.uint8).tofile(tmp_path / f"{split}_X.bin")
        np.array([1, 2, 10, 1], np.uint8).tofile(tmp_path / f"{split}_y.bin")
    dataset = open_dataset(f"stl10:{tmp_path}")
    assert dataset.sources == (f"stl10-labelled:{tmp_path}",)
    assert dataset.load("train", SIDE).labels.tolist() == [0, 1, 9, 0]


def test_a_hub_data_set_is_scored_on_the_splits_it_has(write_pack, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "snapshot" / "data"
    folder.mkdir(parents=True)
    for split, count in (("train", 6), ("test", 2)):
        pack = write_pack(name=f"{split}.parquet", count=count)
        pack.rename(folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder.parent))
    dataset = open_dataset("hf:some/set@main")
    assert dataset.name == "set@main"
    assert len(dataset.load("train", SIDE)) == 6 and len(dataset.load("test", SIDE)) == 2
    assert open_dataset("cifar100").name == "cifar100"  # from the hub by its own name


def test_every_named_format_says_its_splits() -> None:
    assert set(SPLITS) == set(FORMATS)
    assert all(splits[0] == "train" for splits in SPLITS.values())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cifar10:/no/such/folder", "there is no folder /no/such/folder"),
        ("stl10", r"say stl10:FOLDER"),
        ("cifar11", r"no data 'cifar11'; known are"),
        ("", "at least one path or name"),
    ],
)
def test_what_is_no_data_set_is_named(value: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(value)
