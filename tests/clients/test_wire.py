from __future__ import annotations

import base64
import json

import pytest

from amdim_clients.inputs import RequestBatch
from amdim_clients.wire import EmbedBody, EmbedOptions

PLAIN = EmbedOptions.of(None, normalize=True, model=None)
NAMED = EmbedOptions.of(["global", "local7"], normalize=False, model='a"b')
WINDOWS = EmbedOptions.of_windows((1.0, 2.0), model=None)


@pytest.mark.parametrize("options", [PLAIN, NAMED, WINDOWS])
@pytest.mark.parametrize("count", [1, 3])
def test_a_body_is_the_json_that_it_says_it_is(options, count):
    payloads = tuple(bytes(range(size)) for size in range(1, count + 1))
    body = EmbedBody(RequestBatch(tuple(range(count)), payloads), options)
    sent = b"".join(body)
    assert len(sent) == len(body)
    assert body.headers["content-length"] == str(len(sent))
    document = json.loads(sent)
    assert [base64.b64decode(image["data"]) for image in document["images"]] == list(payloads)
    assert document["normalize"] == options.normalize
    assert document.get("outputs") == (list(options.outputs) if options.outputs else None)
    assert document.get("model") == options.model
    assert document.get("scales") == (list(options.scales) if options.scales else None)
    assert b"".join(body) == sent  # a retry sends the same
