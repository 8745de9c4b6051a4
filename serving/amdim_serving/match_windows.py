"""The window of each candidate that is nearest to a query, or to a region cut out of it.

Knows the service and no protocol; the mathematics is in `amdim_clients.matching`.
"""

from __future__ import annotations

from functools import partial

from amdim_clients.contract import EMBEDDING, WINDOWS
from amdim_clients.errors import ImageError, RegionError
from amdim_clients.images import ImageLimits
from amdim_clients.matching import WindowMatch, nearest_window
from amdim_clients.regions import cut_region
from amdim_serving.errors import ItemError, RequestError
from amdim_serving.match_request import MatchCall
from amdim_serving.pictures import Picture, picture_bytes
from amdim_serving.results import Embedded, EmbedResult
from amdim_serving.service import EmbedService


async def match_windows(
    service: EmbedService, call: MatchCall, whole: EmbedResult
) -> list[WindowMatch | ItemError]:
    """Returns each candidate's nearest window, in order, or why it has none.

    Args:
        service: Gives the vectors.
        call: The request.
        whole: What came of its pictures as wholes, the query first.

    Raises:
        RequestError: unknown_output where no windows are served; bad_request for a region; the
            query's own failure; as `EmbedService.embed`.
    """
    outputs = service.check_outputs((WINDOWS,))
    query = whole.items[0]
    if call.options.region is not None and not isinstance(query, ItemError):
        cut = await service.run_in_thread(partial(_cut, service, call))
        query = (await service.embed([cut], (EMBEDDING,), normalize=False)).items[0]
    if isinstance(query, ItemError):
        raise RequestError(query.code, query.message)
    result = await service.embed_windows(
        call.candidates, outputs, scales=call.options.scales, normalize=False
    )
    whole.timings.merge(result.timings)
    vector = query.vectors[EMBEDDING]
    return [
        nearest_window(vector, [(part.grid, part.vectors) for part in item.windows or ()])
        if isinstance(item, Embedded)
        else item
        for item in result.items
    ]


def _cut(service: EmbedService, call: MatchCall) -> Picture:
    """Returns the square about the query's region, cut out at full size.

    Raises:
        RequestError: bad_request for the region; the query's own failure.
    """
    assert call.options.region is not None, "there is something to cut out"
    limits = ImageLimits(service.limits.max_pixels, service.limits.min_side)
    try:
        return Picture(cut_region(picture_bytes(call.query), call.options.region, limits))
    except RegionError as error:
        raise RequestError("bad_request", str(error)) from error
    except ImageError as error:
        raise RequestError(error.code, error.message) from error
