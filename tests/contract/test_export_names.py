"""What export writes and what the clients read are typed twice; here they are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from amdim_clients import certificate as read_side
from amdim_clients import contract
from amdim_clients.images import PREPROCESS_VERSION, RESIZE_FOR, Preprocess
from amdim_export import names
from amdim_export.triton_config import EncoderFacts, encoder_config
from amdim_training.config import IMAGE_SIZES


def test_tensors_have_one_name() -> None:
    assert names.IMAGES == contract.INPUT
    assert names.EMBEDDING == contract.EMBEDDING
    assert names.GLOBAL == contract.GLOBAL
    assert names.LOCAL5 == contract.LOCAL5
    assert names.LOCAL7 == contract.LOCAL7


def test_files_and_formats_have_one_name() -> None:
    assert names.CERTIFICATE_FILE == read_side.CERTIFICATE_FILE
    assert names.CONFIG_FILE == contract.CONFIG_FILE
    assert str(names.FORMAT) == contract.CONFIG_FORMAT
    assert names.FORMAT == read_side.CERTIFICATE_FORMAT


def test_every_encoder_size_has_a_preprocessing() -> None:
    assert tuple(RESIZE_FOR) == IMAGE_SIZES


@pytest.fixture
def facts() -> Callable[..., EncoderFacts]:
    def make(image_size: int, embedding_dim: int | None) -> EncoderFacts:
        preprocess = Preprocess.for_image_size(image_size)
        return EncoderFacts(
            image_size=image_size,
            resize=preprocess.resize,
            preprocess_version=PREPROCESS_VERSION,
            embed_dim=48,
            embedding_dim=embedding_dim,
            default_output=names.GLOBAL if embedding_dim is None else names.EMBEDDING,
            encoder_digest="sha256:" + "a" * 64,
            preprocess_digest=preprocess.digest,
            artifact_digest="sha256:" + "b" * 64,
        )

    return make


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("embedding_dim", [None, 24])
def test_the_config_that_export_writes_reads_back_as_the_same_spec(
    tmp_path: Path,
    facts: Callable[..., EncoderFacts],
    image_size: int,
    embedding_dim: int | None,
) -> None:
    written = facts(image_size, embedding_dim)
    config = encoder_config(
        "tiny", written, max_batch_size=5, instances=2, max_queue_delay_us=300
    ).to_pbtxt()
    (tmp_path / names.CONFIG_FILE).write_text(config, encoding="utf-8")

    spec = contract.parse_model_config(contract.read_model_config(tmp_path), version="3")

    assert (spec.name, spec.version, spec.precision) == ("tiny", "3", written.precision)
    assert (spec.image_size, spec.embed_dim, spec.embedding_dim) == (image_size, 48, embedding_dim)
    assert dict(spec.outputs) == names.output_shapes(48, embedding_dim)
    assert spec.default_output == written.default_output
    assert (spec.max_batch_size, spec.instance_count, spec.max_queue_delay_us) == (5, 2, 300)
    assert spec.preprocess == Preprocess.for_image_size(image_size)
    assert spec.encoder_digest == written.encoder_digest
    assert spec.preprocess_digest == written.preprocess_digest
    assert spec.artifact_digest == written.artifact_digest
