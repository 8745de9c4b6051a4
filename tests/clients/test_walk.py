from __future__ import annotations

import io
import os
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amdim_clients.errors import SourceError
from amdim_clients.indexing import update_index
from amdim_clients.lance_index import create_index
from amdim_clients.walk import count_images, read_keys, walk_images


def names(sources, folder):
    return [str(source.key).removeprefix(f"{folder}/") for source in sources]


def test_folders_are_walked_in_order_and_only_pictures_are_taken(photo_folder):
    found = names(walk_images([photo_folder]), photo_folder)
    assert found[:2] == ["broken.jpg", "cut.png"]
    assert found[2:] == sorted(found[2:])
    assert len(found) == 22
    assert count_images([photo_folder]) == 22


def test_unsupported_picture_formats_are_reported_not_passed_over(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"?")
    assert names(walk_images([tmp_path]), tmp_path) == ["a.heic"]


def test_patterns_files_and_overlaps_give_each_picture_once(photo_folder):
    pattern = str(photo_folder / "class0" / "*.jpg")
    some = names(walk_images([pattern]), photo_folder)
    assert some[0] == "class0/00.jpg"
    assert len(some) == 7
    everything = names(
        walk_images([photo_folder, pattern, photo_folder / "notes.txt"]), photo_folder
    )
    assert len(everything) == 23
    assert everything[-1] == "notes.txt"


def test_keys_are_absolute_so_that_they_are_found_again(photo_folder, monkeypatch):
    monkeypatch.chdir(photo_folder)
    (source,) = walk_images(["class0/00.jpg"])
    assert source.key == str(photo_folder / "class0" / "00.jpg")


@pytest.mark.parametrize("path", ["nowhere", "no*where"])
def test_path_that_names_nothing_is_an_error(path, tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        list(walk_images([str(tmp_path / path)]))


def test_parquet_pack_is_read_row_by_row(parquet_pack, photo_bytes):
    sources = list(walk_images([parquet_pack]))
    assert len(sources) == count_images([parquet_pack]) == 70
    assert sources[0].key == f"{parquet_pack}#0"
    assert sources[69].key == f"{parquet_pack}#69:c/69.jpg"
    assert sources[69].read() == photo_bytes(69)
    with pytest.raises(SourceError):
        sources[6].read()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_are_read_member_by_member(tmp_path, photo_bytes, kind):
    pack = tmp_path / f"shard#1.{kind}"
    members = {"a/0.jpg": photo_bytes(0), "a/0.json": b"{}", "a/1#2.jpg": photo_bytes(1)}
    if kind == "tar":
        with tarfile.open(pack, "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        with zipfile.ZipFile(pack, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    sources = list(walk_images([pack]))
    assert [source.key for source in sources] == [f"{pack}#a/0.jpg", f"{pack}#a/1#2.jpg"]
    assert count_images([pack]) == (None if kind == "tar" else 2)
    assert read_keys([sources[1].key]) == {sources[1].key: photo_bytes(1)}


def test_broken_member_of_a_zip_fails_alone(tmp_path, photo_bytes):
    pack = tmp_path / "a.zip"
    with zipfile.ZipFile(pack, "w") as archive:
        archive.writestr("0.jpg", photo_bytes(0))
        archive.writestr("1.jpg", photo_bytes(1))
    data = bytearray(pack.read_bytes())
    data[200] ^= 255
    pack.write_bytes(data)
    first, second = walk_images([pack])
    with pytest.raises(SourceError):
        first.read()
    assert second.read() == photo_bytes(1)


def test_pack_that_is_none_is_an_error_alone_and_a_failure_in_a_folder(photo_folder):
    bad = photo_folder / "vectors.parquet"
    pq.write_table(pa.table({"x": [1]}), bad)
    (photo_folder / "bad.zip").write_bytes(b"PK")
    (photo_folder / "bad.tar").write_bytes(b"no tar file" * 100)
    for name in ("vectors.parquet", "bad.zip", "bad.tar"):
        with pytest.raises(SourceError):
            list(walk_images([photo_folder / name]))
    assert count_images([photo_folder]) == 25 or count_images([photo_folder]) is None
    failing = {}
    for source in walk_images([photo_folder]):
        try:
            source.read()
        except SourceError as error:
            failing[source.key] = str(error)
    assert set(failing) == {
        str(photo_folder / n) for n in ("vectors.parquet", "bad.zip", "bad.tar")
    }
    assert "struct column image" in failing[str(bad)]


def test_name_that_is_no_text_is_a_failure(photo_folder, photo_bytes):
    with open(os.fsencode(photo_folder) + b"/\xff.jpg", "wb") as file:
        file.write(photo_bytes(0))
    (odd,) = (s for s in walk_images([photo_folder]) if s.key.endswith("/\ufffd.jpg"))
    with pytest.raises(SourceError, match="not UTF-8"):
        odd.read()


def test_keys_are_found_again_and_what_is_gone_is_left_out(photo_folder, parquet_pack, photo_bytes):
    plain = str(photo_folder / "class0" / "00.jpg")
    packed = [f"{parquet_pack}#3:c/3.jpg", f"{parquet_pack}#6:c/6.jpg", f"{parquet_pack}#999"]
    found = read_keys([plain, *packed, str(photo_folder / "gone.jpg")])
    assert found == {plain: photo_bytes(0), packed[0]: photo_bytes(3)}


def test_folder_that_may_not_be_read_is_a_failure_and_keeps_its_rows(
    photo_folder, toy_embedder, tmp_path, monkeypatch
):
    index = create_index(tmp_path / "db", toy_embedder.origin.space("embedding"))
    update_index([photo_folder], toy_embedder, index, output="embedding")
    closed = str(photo_folder / "class1")
    scandir = os.scandir

    def refuse(path):
        # Modes do not stop the superuser, as whom the tests may run.
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    failing = [source for source in walk_images([photo_folder]) if source.key == closed]
    with pytest.raises(SourceError, match=r"cannot read the folder .*class1: Permission denied"):
        failing[0].read()
    report = update_index([photo_folder], toy_embedder, index, output="embedding")
    assert (report.unchanged, report.removed) == (13, 0)
    assert [key for key, failure in report.failed if failure.code == "unreadable"] == [closed]
    assert len(index) == 20


def test_packs_say_labels(tmp_path, photo_bytes):
    images = [{"bytes": photo_bytes(n), "path": None} for n in range(3)]
    named = pa.table({"image": images, "label": [1, 0, None]}).replace_schema_metadata(
        {"label_names": '["dog", "cat"]'}
    )
    pq.write_table(named, tmp_path / "named.parquet")
    pq.write_table(pa.table({"image": images, "label": [7, 8, 9]}), tmp_path / "numbers.parquet")
    pq.write_table(
        pa.table({"image": images, "label": ["a", "b", None]}), tmp_path / "texts.parquet"
    )
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in {
            "0001.jpg": photo_bytes(0),
            "0001.cls": b"3\n",
            "0002.cls": b"tabby",
            "0002.json": b"{}",
            "0002.png": photo_bytes(1),
            "sub/0002.jpg": photo_bytes(2),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

    def labels(name):
        return [source.label for source in walk_images([tmp_path / name])]

    assert labels("named.parquet") == ["cat", "dog", None]
    assert labels("numbers.parquet") == ["7", "8", "9"]
    assert labels("texts.parquet") == ["a", "b", None]
    assert labels("shard.tar") == ["3", "tabby", None]
    assert all(source.modified for source in walk_images([shard]))
