"""Adds to found pictures where in them the query is seen: the trained score, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amdim_clients.fields import Box


def add_maps(
    answers: Sequence[dict[str, Any]], query: str, region: Box | None, place: dict[str, Any]
) -> None:
    """Put `map`, `cell` and `cell_box` into each answer whose picture is still there."""
    from amdim_clients.commands.opening import open_embedder
    from amdim_clients.comparing import OUTPUTS, picture_features
    from amdim_clients.matching import match_pictures
    from amdim_clients.searching import read_query
    from amdim_clients.walk import read_keys

    with open_embedder(**{**place, "model": None}, outputs=OUTPUTS, normalize=False) as embedder:
        asked = picture_features(read_query(query), embedder)
        pictures = read_keys(answer["path"] for answer in answers)
        for answer in answers:
            data = pictures.get(answer["path"])
            if data is None:
                continue
            match = match_pictures(asked, picture_features(data, embedder), region=region)
            seen = match.region or match.whole
            answer["map"] = seen.map.tolist()
            answer["cell"], answer["cell_box"] = seen.cell, seen.box
