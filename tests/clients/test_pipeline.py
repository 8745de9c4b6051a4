from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from amdim_clients.embedders import LocalEmbedder, RemoteEmbedder, open_local_encoder
from amdim_clients.errors import EngineError
from amdim_clients.gateway import EmbedClient
from amdim_clients.images import Preprocess, decode_image
from amdim_clients.inputs import RequestLimits
from amdim_clients.pipeline import Known, embed_sources
from amdim_clients.walk import ImageSource, walk_images


def run(sources, embedder, **options):
    outcomes = list(embed_sources(sources, embedder, **options))
    rows: dict[str, dict[str, np.ndarray]] = {}
    for outcome in outcomes:
        for name, array in outcome.arrays.items():
            assert len(array) == len(outcome.records)
            for record, vector in zip(outcome.records, array, strict=True):
                rows.setdefault(record.key, {})[name] = vector
    failed = {key: failure.code for o in outcomes for key, failure in o.failed}
    unchanged = [key for o in outcomes for key in o.unchanged]
    return rows, failed, unchanged


def test_every_picture_has_its_own_vector_or_its_reason(
    photo_folder, toy_embedder, encode_toy, photo_bytes
):
    rows, failed, unchanged = run(walk_images([photo_folder]), toy_embedder)
    assert len(rows) == 20
    assert failed == {
        str(photo_folder / "broken.jpg"): "unsupported_media_type",
        str(photo_folder / "cut.png"): "image_truncated",
    }
    assert unchanged == []
    for n in (0, 7, 19):
        pixels = decode_image(photo_bytes(n), Preprocess.for_image_size(64)).pixels
        expected = encode_toy(pixels[None], ["embedding"])["embedding"][0]
        vector = rows[str(photo_folder / f"class{n % 3}" / f"{n:02}.jpg")]["embedding"]
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-5)


def test_engine_gets_full_batches(photo_folder, toy_embedder, toy_encoder):
    run(walk_images([photo_folder]), toy_embedder)
    assert toy_encoder.batches == [16, 4] or sum(toy_encoder.batches) == 20
    assert max(toy_encoder.batches) <= 16


def test_raw_vectors_of_several_outputs(photo_folder, toy_encoder):
    embedder = LocalEmbedder(toy_encoder, outputs=["global", "local7"], normalize=False)
    rows, _, _ = run(walk_images([photo_folder]), embedder)
    vectors = next(iter(rows.values()))
    assert vectors["local7"].shape == (7, 7, 8)
    assert abs(np.linalg.norm(vectors["global"]) - 1) > 1e-3
    embedder.close()
    assert toy_encoder.is_closed


def test_unknown_output_is_refused(toy_encoder):
    with pytest.raises(EngineError, match="no output local9"):
        LocalEmbedder(toy_encoder, outputs=["local9"])


def test_known_pictures_are_not_encoded(photo_folder, toy_embedder, toy_encoder):
    known = str(photo_folder / "class0" / "00.jpg")
    rows, _, unchanged = run(
        walk_images([photo_folder]),
        toy_embedder,
        known=lambda key, digest: Known.SAME if key == known else Known.NEW,
    )
    assert unchanged == [known]
    assert len(rows) == sum(toy_encoder.batches) == 19


def test_zero_and_broken_vectors_are_failures_not_rows(photo_folder, toy_encoder):
    class Broken:
        spec = toy_encoder.spec

        def encode(self, images, outputs):
            vectors = toy_encoder.encode(images, outputs)["embedding"]
            vectors[0], vectors[1] = 0, np.nan
            return {"embedding": vectors}

        def close(self):
            pass

    rows, failed, _ = run(walk_images([photo_folder]), LocalEmbedder(Broken()))
    assert list(failed.values()).count("invalid_embedding") >= 2
    assert all(np.isfinite(vectors["embedding"]).all() for vectors in rows.values())


def test_decoding_runs_ahead_only_as_far_as_the_window(toy_embedder, photo_bytes):
    taken = 0

    def sources():
        nonlocal taken
        for n in range(1000):
            taken += 1
            yield ImageSource(str(n), lambda: photo_bytes(0))

    outcomes = embed_sources(sources(), toy_embedder, workers=2)
    next(outcomes)
    assert taken <= toy_embedder.window + 16
    outcomes.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("amdim-decode")]


def test_decoding_goes_on_while_the_engine_works(toy_encoder, photo_bytes):
    read_during_encode = []

    class Slow:
        spec = toy_encoder.spec
        is_encoding = False

        def encode(self, images, outputs):
            self.is_encoding = True
            time.sleep(0.05)
            self.is_encoding = False
            return toy_encoder.encode(images, outputs)

        def close(self):
            pass

    slow = Slow()

    def read():
        time.sleep(0.002)
        read_during_encode.append(slow.is_encoding)
        return photo_bytes(0)

    sources = [ImageSource(str(n), read) for n in range(96)]
    run(sources, LocalEmbedder(slow), workers=2)
    assert sum(read_during_encode) > 10


def test_gateway_gives_what_the_engine_here_gives(
    photo_folder, toy_embedder, gateway, gateway_transport
):
    limits = RequestLimits(max_images=3, concurrency=2)
    client = EmbedClient(transport=gateway_transport, limits=limits)
    remote = RemoteEmbedder(client, limits=limits)
    assert remote.origin.space("embedding") == toy_embedder.origin.space("embedding")
    here, failed_here, _ = run(walk_images([photo_folder]), toy_embedder)
    there, failed_there, _ = run(walk_images([photo_folder]), remote)
    assert failed_here == failed_there
    assert here.keys() == there.keys()
    for key in here:
        np.testing.assert_allclose(here[key]["embedding"], there[key]["embedding"], rtol=1e-5)
    gateway.encoder_digest = "sha256:" + "d" * 64
    with pytest.raises(EngineError, match="changed its encoder"):
        remote.embed([b"", photo_folder.joinpath("class0/00.jpg").read_bytes()])
    remote.close()


def test_missing_engine_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("amdim_clients.embedders.ENGINE_GROUP", "amdim.no_such_group")
    with pytest.raises(EngineError, match="pip install"):
        open_local_encoder(tmp_path)
