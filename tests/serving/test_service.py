from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from amdim_clients.images import DecodedImage, ImageLimits, Preprocess, decode_image
from amdim_serving.errors import ItemError
from amdim_serving.limits import Limits
from amdim_serving.opening import OpenModel
from amdim_serving.pictures import Decode, Picture
from amdim_serving.service import EmbedService


def run_with(
    opened: OpenModel,
    scenario: Callable[[EmbedService], Awaitable[None]],
    *,
    decode: Decode = decode_image,
    **limits: Any,
) -> None:
    async def main() -> None:
        service = EmbedService(
            opened.engine, limits=Limits(**limits), decode_threads=1, decode=decode
        )
        await service.start()
        await scenario(service)
        await service.close(2.0)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_decode_that_takes_too_long_answers_in_time_and_keeps_its_permit(
    opened: OpenModel, make_picture: Callable[..., bytes]
) -> None:
    stuck = threading.Event()

    def slow(data: bytes | memoryview, preprocess: Preprocess, limits: ImageLimits) -> DecodedImage:
        if data == b"slow":
            stuck.wait(10)
            data = make_picture()
        return decode_image(data, preprocess, limits)

    async def scenario(service: EmbedService) -> None:
        result = await service.embed([Picture(b"slow")], ("embedding",))
        assert isinstance(result.items[0], ItemError)
        assert result.items[0].code == "deadline_exceeded"
        assert service.batcher.admitted == 1
        stuck.set()
        while service.batcher.admitted:
            await asyncio.sleep(0.01)
        after = await service.embed([Picture(make_picture())], ("embedding",))
        assert not isinstance(after.items[0], ItemError)

    run_with(opened, scenario, decode=slow, decode_seconds=0.1)


def test_work_of_a_request_that_is_given_up_is_dropped(
    opened: OpenModel, make_picture: Callable[..., bytes]
) -> None:
    picture = make_picture()

    async def scenario(service: EmbedService) -> None:
        work = asyncio.create_task(service.embed([Picture(picture)] * 500, ("global",)))
        await asyncio.sleep(0.02)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        while service.batcher.admitted:
            await asyncio.sleep(0.01)
        assert service.batcher.stats.images < 500

    run_with(opened, scenario)
