from __future__ import annotations

import numpy as np

from amdim_clients.neighbors import StoredRow
from amdim_clients.store_rows import as_cosines, chunks, leftovers, nearest_counting, window_counts
from amdim_clients.window_rows import PictureWindows


def ask_of(owners, asked):
    def ask(wanted):
        asked.append(wanted)
        return owners[:wanted], owners[:wanted]

    return ask


def test_windows_of_former_contents_and_of_no_picture_are_passed_over():
    owners = [("gone", "g"), ("a", "old"), ("a", "new"), ("b", "b"), ("a", "new")]
    contents = {"a": "new", "b": "b"}
    asked: list[int] = []
    found, kept = nearest_counting(ask_of(owners, asked), lambda _: contents, count=3, total=5)
    assert [found[at] for at in kept] == [("a", "new"), ("b", "b"), ("a", "new")]
    assert asked == [4, 16]  # four held too few that count


def test_a_store_with_too_few_windows_that_count_is_not_asked_for_ever():
    owners = [("gone", "g")] * 40 + [("a", "a")]
    asked: list[int] = []
    found, kept = nearest_counting(ask_of(owners, asked), lambda _: {"a": "a"}, count=2, total=41)
    assert [found[at] for at in kept] == [("a", "a")]
    assert asked[-1] >= 41


def test_leftovers_are_short_pictures_and_windows_that_do_not_count():
    rows = [
        StoredRow("whole", "w", 2),
        StoredRow("short", "s", 3),
        StoredRow("changed", "new", 1),
        StoredRow("without", "x", None),
    ]
    owners = [
        *[("whole", "w")] * 2,
        ("short", "s"),
        ("changed", "old"),
        ("changed", "new"),
        ("gone", "g"),
    ]
    left = leftovers(rows, owners)
    assert left.short == ["short"]
    assert left.strays == {"changed": "new", "gone": None}


def test_pictures_that_never_had_windows_are_told_from_those_with_none():
    empty = PictureWindows(
        np.zeros(0, np.float32), np.zeros((0, 4), np.float32), np.zeros((0, 8), np.float16)
    )
    assert window_counts(None, 2) == [None, None]
    assert window_counts([empty], 1) == [0]


def test_cosines_stay_cosines_after_rounding():
    assert as_cosines([1.0000001, -1.5, 0.25]).tolist() == [1.0, -1.0, 0.25]


def test_chunks_hold_everything_once_in_order():
    assert [list(chunk) for chunk in chunks(dict.fromkeys("abcde"), 2)] == [
        ["a", "b"],
        ["c", "d"],
        ["e"],
    ]
