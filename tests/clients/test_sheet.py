import numpy as np
from PIL import Image

from amdim_clients import sheet
from amdim_clients.sheet import Tile, contact_sheet, save_sheet


def test_captions_keep_to_their_tile() -> None:
    tile = Tile(("query", "W" * 80 + ".jpg"), None)
    drawn = np.asarray(contact_sheet(tile, [tile, tile]).convert("L"))
    captions = drawn[sheet._GAP + sheet._TILE + 4 :]
    for place in range(1, 3):  # the gap before each tile but the first
        end = sheet._GAP + place * (sheet._TILE + sheet._GAP)
        assert (captions[:, end - sheet._GAP + 1 : end] == drawn[0, 0]).all()
    assert (captions != drawn[0, 0]).any()


def test_a_picture_that_is_gone_leaves_its_place_blank(tmp_path) -> None:
    save_sheet(contact_sheet(Tile(("q", "a"), None), [Tile(("1.", "b"), b"no picture")]),
               tmp_path / "sheet.png")  # fmt: skip
    with Image.open(tmp_path / "sheet.png") as written:
        assert written.width > 2 * sheet._TILE
