"""Names that both islands type: neither may import the other, so only a test can compare them."""

from __future__ import annotations

import pytest

from amdim_clients import contract
from amdim_clients.certificate import CERTIFICATE_FILE
from amdim_export import names
from amdim_export.triton_config import EncoderFacts, encoder_config


def test_tensor_and_file_names():
    assert names.IMAGES == contract.INPUT
    assert names.EMBEDDING == contract.EMBEDDING
    assert names.GLOBAL == contract.GLOBAL
    assert names.LOCAL5 == contract.LOCAL5
    assert names.LOCAL7 == contract.LOCAL7
    assert names.CONFIG_FILE == contract.CONFIG_FILE
    assert names.CERTIFICATE_FILE == CERTIFICATE_FILE
    assert str(names.FORMAT) == contract.CONFIG_FORMAT


@pytest.mark.parametrize("embedding_dim", [None, 12])
def test_what_export_writes_is_what_clients_read(tmp_path, embedding_dim):
    from amdim_clients.images import Preprocess

    preprocess = Preprocess.for_image_size(64)
    default = "global" if embedding_dim is None else "embedding"
    facts = EncoderFacts(
        image_size=64,
        resize=preprocess.resize,
        preprocess_version=1,
        embed_dim=40,
        embedding_dim=embedding_dim,
        default_output=default,
        encoder_digest="sha256:" + "a" * 64,
        preprocess_digest=preprocess.digest,
        artifact_digest="sha256:" + "c" * 64,
    )
    config = encoder_config("m", facts, max_batch_size=8, instances=3, max_queue_delay_us=70)
    (tmp_path / "config.pbtxt").write_text(config.to_pbtxt())
    spec = contract.parse_model_config(contract.read_model_config(tmp_path), version="1")
    assert dict(spec.outputs) == names.output_shapes(40, embedding_dim)
    assert (spec.name, spec.max_batch_size, spec.instance_count) == ("m", 8, 3)
    assert (spec.max_queue_delay_us, spec.default_output) == (70, default)
    assert (spec.encoder_digest, spec.artifact_digest) == (
        facts.encoder_digest,
        facts.artifact_digest,
    )
    assert spec.preprocess == preprocess
