"""Names that both islands type: neither may import the other, so only a test can compare them."""

from __future__ import annotations

import pytest

from amdim_clients import contract
from amdim_clients.certificate import CERTIFICATE_FILE
from amdim_export import names
from amdim_export.triton_config import EncoderFacts, encoder_config, windows_config


def test_tensor_and_file_names():
    assert names.IMAGES == contract.INPUT
    assert names.EMBEDDING == contract.EMBEDDING
    assert names.GLOBAL == contract.GLOBAL
    assert names.LOCAL5 == contract.LOCAL5
    assert names.LOCAL7 == contract.LOCAL7
    assert names.WINDOWS == contract.WINDOWS
    assert names.CONFIG_FILE == contract.CONFIG_FILE
    assert names.CERTIFICATE_FILE == CERTIFICATE_FILE
    assert str(names.FORMAT) == contract.CONFIG_FORMAT


def _facts(embedding_dim):
    from amdim_clients.images import Preprocess

    preprocess = Preprocess.for_image_size(64)
    return EncoderFacts(
        image_size=64,
        resize=preprocess.resize,
        preprocess_version=1,
        embed_dim=40,
        embedding_dim=embedding_dim,
        default_output="global" if embedding_dim is None else "embedding",
        encoder_digest="sha256:" + "a" * 64,
        preprocess_digest=preprocess.digest,
        artifact_digest="sha256:" + "c" * 64,
    )


@pytest.mark.parametrize("embedding_dim", [None, 12])
def test_what_export_writes_is_what_clients_read(tmp_path, embedding_dim):
    facts = _facts(embedding_dim)
    config = encoder_config("m", facts, max_batch_size=8, instances=3, max_queue_delay_us=70)
    (tmp_path / "config.pbtxt").write_text(config.to_pbtxt())
    spec = contract.parse_model_config(contract.read_model_config(tmp_path), version="1")
    assert dict(spec.outputs) == names.output_shapes(40, embedding_dim)
    assert (spec.name, spec.max_batch_size, spec.instance_count) == ("m", 8, 3)
    assert (spec.max_queue_delay_us, spec.default_output) == (70, facts.default_output)
    assert (spec.encoder_digest, spec.artifact_digest) == (
        facts.encoder_digest,
        facts.artifact_digest,
    )
    assert spec.preprocess.digest == facts.preprocess_digest
    assert not spec.gives_windows


def test_the_windows_config_is_read_too(tmp_path):
    config = windows_config("m", _facts(12), stride=8, max_batch_size=4)
    (tmp_path / "config.pbtxt").write_text(config.to_pbtxt())
    spec = contract.parse_model_config(contract.read_model_config(tmp_path), version="1")
    assert spec.gives_windows and spec.window_stride == 8
    assert dict(spec.outputs) == {contract.WINDOWS: (-1, -1, 12)}
    assert (spec.name, spec.default_output) == ("m_windows", contract.WINDOWS)
