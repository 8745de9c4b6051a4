from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from amdim_export.pbtxt import Enum, to_pbtxt
from amdim_export.triton_config import (
    EncoderFacts,
    EnsembleStep,
    ModelConfig,
    Tensor,
    encoder_config,
)

FACTS = EncoderFacts(
    image_size=64,
    resize=70,
    preprocess_version=1,
    embed_dim=256,
    embedding_dim=128,
    default_output="embedding",
    encoder_digest="sha256:" + "a" * 64,
    preprocess_digest="sha256:" + "b" * 64,
    artifact_digest="sha256:" + "c" * 64,
)


def _parse(config: ModelConfig):
    return text_format.Parse(config.to_pbtxt(), pb.ModelConfig())


def test_encoder_config_through_protobuf():
    config = encoder_config("amdim", FACTS, max_batch_size=16, instances=2, max_queue_delay_us=500)
    expected = pb.ModelConfig(
        name="amdim",
        backend="onnxruntime",
        default_model_filename="model.onnx",
        max_batch_size=16,
        input=[pb.ModelInput(name="images", data_type=pb.TYPE_UINT8, dims=[64, 64, 3])],
        output=[
            pb.ModelOutput(name="embedding", data_type=pb.TYPE_FP32, dims=[128]),
            pb.ModelOutput(name="global", data_type=pb.TYPE_FP32, dims=[256]),
            pb.ModelOutput(name="local5", data_type=pb.TYPE_FP32, dims=[5, 5, 256]),
            pb.ModelOutput(name="local7", data_type=pb.TYPE_FP32, dims=[7, 7, 256]),
        ],
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
        dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=500),
        instance_group=[pb.ModelInstanceGroup(count=2, kind=pb.ModelInstanceGroup.KIND_CPU)],
        model_warmup=[
            pb.ModelWarmup(
                name=f"batch {size}",
                batch_size=size,
                inputs={
                    "images": pb.ModelWarmup.Input(
                        data_type=pb.TYPE_UINT8, dims=[64, 64, 3], zero_data=True
                    )
                },
            )
            for size in (1, 16)
        ],
        parameters={
            f"amdim.{key}": pb.ModelParameter(string_value=value)
            for key, value in {
                "format": "1",
                "image_size": "64",
                "resize": "70",
                "preprocess_version": "1",
                "embed_dim": "256",
                "embedding_dim": "128",
                "default_output": "embedding",
                "encoder_digest": FACTS.encoder_digest,
                "preprocess_digest": FACTS.preprocess_digest,
                "artifact_digest": FACTS.artifact_digest,
                "precision": "fp32",
            }.items()
        },
    )
    assert _parse(config) == expected


def test_without_a_delay_batching_is_still_on():
    parsed = _parse(encoder_config("amdim", FACTS, max_batch_size=4))
    assert parsed.HasField("dynamic_batching")
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 0


def test_ensemble_through_protobuf():
    step = EnsembleStep("amdim", {"images": "pixels"}, {"embedding": "embedding"})
    config = ModelConfig(
        name="amdim_image",
        backend=None,
        max_batch_size=8,
        inputs=(Tensor("image", "TYPE_STRING", (1,)),),
        outputs=(Tensor("embedding", "TYPE_FP32", (4,)),),
        parameters={},
        steps=(step,),
    )
    parsed = _parse(config)
    assert parsed.platform == "ensemble"
    (only,) = parsed.ensemble_scheduling.step
    assert (only.model_name, only.model_version) == ("amdim", -1)
    assert dict(only.input_map) == {"images": "pixels"}
    assert dict(only.output_map) == {"embedding": "embedding"}


@pytest.mark.parametrize("text", ['say "hi"', "back\\slash", "two\nlines", "grüße \t\x01", ""])
def test_any_string_survives(text):
    config = text_format.Parse(to_pbtxt({"name": text}), pb.ModelConfig())
    assert config.name == text


def test_words_are_not_quoted():
    assert to_pbtxt({"kind": Enum("KIND_CPU"), "on": True}) == "kind: KIND_CPU\non: true\n"
