from __future__ import annotations

import multiprocessing
import os

import pytest

from amdim_export.errors import RepositoryError
from amdim_export.repository import (
    list_versions,
    next_version,
    publish_version,
    remove_leftovers,
    retire_version,
    roll_back,
)


def _publish(root, content: bytes = b"1", version: int | None = None):
    text = f'name: "m{content.decode()}"\n'
    return publish_version(root, "m", {"model.onnx": content}, config=text, version=version)


def test_versions_count_up_and_the_config_is_the_newest(tmp_path):
    assert _publish(tmp_path, b"1").name == "1"
    assert _publish(tmp_path, b"2").name == "2"
    assert list_versions(tmp_path / "m") == [1, 2]
    assert (tmp_path / "m/config.pbtxt").read_text() == 'name: "m2"\n'
    assert (tmp_path / "m/1/model.onnx").read_bytes() == b"1"


def test_a_version_is_never_overwritten(tmp_path):
    _publish(tmp_path, b"first", version=3)
    with pytest.raises(RepositoryError, match="exists already"):
        _publish(tmp_path, b"second", version=3)
    assert (tmp_path / "m/3/model.onnx").read_bytes() == b"first"
    assert _publish(tmp_path).name == "4"


def test_publishing_an_older_number_leaves_the_config_with_the_newest(tmp_path):
    _publish(tmp_path, b"5", version=5)
    _publish(tmp_path, b"2", version=2)
    assert (tmp_path / "m/config.pbtxt").read_text() == 'name: "m5"\n'


def test_leftovers_of_a_killed_publish_are_ignored_and_removed(tmp_path):
    _publish(tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join()
    left = tmp_path / "m" / f".publishing-{process.pid}-2"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    assert list_versions(tmp_path / "m") == [1]
    assert _publish(tmp_path).name == "2"
    assert not left.exists()


def test_another_publish_under_way_is_left_alone(tmp_path):
    _publish(tmp_path)
    busy = tmp_path / "m" / f".publishing-{os.getppid()}-2"
    busy.mkdir()
    remove_leftovers(tmp_path / "m")
    assert busy.exists()


def test_a_failed_publish_leaves_nothing(tmp_path):
    _publish(tmp_path)
    before = sorted(path.name for path in (tmp_path / "m").iterdir())
    with pytest.raises(RepositoryError):
        publish_version(tmp_path, "m", {"no/such/folder": b""}, config="")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == before


def test_killed_between_rename_and_config_is_repaired_by_the_next_publish(tmp_path):
    _publish(tmp_path, b"1")
    stale = (tmp_path / "m/config.pbtxt").read_text()
    _publish(tmp_path, b"2")
    (tmp_path / "m/config.pbtxt").write_text(stale)
    _publish(tmp_path, b"3")
    assert (tmp_path / "m/config.pbtxt").read_text() == 'name: "m3"\n'


def test_retiring_the_newest_rolls_back_and_its_number_is_gone(tmp_path):
    _publish(tmp_path, b"1")
    _publish(tmp_path, b"2")
    kept = retire_version(tmp_path, "m", 2)
    assert (kept / "model.onnx").read_bytes() == b"2"
    assert list_versions(tmp_path / "m") == [1]
    assert (tmp_path / "m/config.pbtxt").read_text() == 'name: "m1"\n'
    assert next_version(tmp_path / "m") == 3
    with pytest.raises(RepositoryError, match="exists already"):
        _publish(tmp_path, version=2)


def test_rolling_back_retires_all_that_is_newer(tmp_path):
    for content in (b"1", b"2", b"3", b"4"):
        _publish(tmp_path, content)
    assert [path.name for path in roll_back(tmp_path, "m")] == ["4"]
    assert [path.name for path in roll_back(tmp_path, "m", 1)] == ["3", "2"]
    assert (tmp_path / "m/config.pbtxt").read_text() == 'name: "m1"\n'
    assert _publish(tmp_path, b"5").name == "5"
    for to, problem in ((7, "no version 7"), (5, "served already"), (2, "no version 2")):
        with pytest.raises(RepositoryError, match=problem):
            roll_back(tmp_path, "m", to)
    roll_back(tmp_path, "m")
    with pytest.raises(RepositoryError, match="to roll back to"):
        roll_back(tmp_path, "m")


def test_the_only_version_stays(tmp_path):
    _publish(tmp_path)
    with pytest.raises(RepositoryError, match="only one"):
        retire_version(tmp_path, "m", 1)
    with pytest.raises(RepositoryError, match="no version 7"):
        retire_version(tmp_path, "m", 7)


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", " m"])
def test_a_model_is_a_plain_folder_name(tmp_path, name):
    with pytest.raises(RepositoryError, match="name"):
        publish_version(tmp_path, name, {}, config="")
