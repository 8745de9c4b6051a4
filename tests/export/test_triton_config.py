from __future__ import annotations

import dataclasses

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from amdim_export.model_config import EnsembleStep, ModelConfig, Tensor
from amdim_export.pbtxt import Enum, to_pbtxt
from amdim_export.triton_config import EncoderFacts, encoder_config, tensorrt_config, windows_config

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


def _images(shape: tuple[int, ...]):
    return pb.ModelWarmup.Input(data_type=pb.TYPE_UINT8, dims=shape, zero_data=True)


def test_windows_config_warms_up_at_a_size_of_its_own():
    facts = dataclasses.replace(FACTS, default_output="windows")
    parsed = _parse(windows_config("amdim", facts, stride=8, max_batch_size=4, kind="KIND_GPU"))
    assert (parsed.name, parsed.max_batch_size) == ("amdim_windows", 4)
    assert list(parsed.input[0].dims) == [-1, -1, 3]
    assert list(parsed.output[0].dims) == [-1, -1, 128]
    assert parsed.HasField("dynamic_batching")
    assert parsed.version_policy.latest.num_versions == 1
    assert parsed.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    (warmup,) = parsed.model_warmup
    assert dict(warmup.inputs) == {"images": _images((128, 128, 3))}
    assert parsed.parameters["amdim.window_stride"].string_value == "8"


def test_accelerated_by_tensorrt_one_engine_takes_every_batch():
    config = encoder_config("amdim", FACTS, max_batch_size=32, kind="KIND_GPU", accelerate=True)
    (accelerator,) = _parse(config).optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    said = dict(accelerator.parameters)
    assert said["precision_mode"] == "FP32"
    assert said["trt_profile_min_shapes"] == "images:1x64x64x3"
    assert said["trt_profile_max_shapes"] == "images:32x64x64x3"
    assert not _parse(encoder_config("amdim", FACTS, max_batch_size=32)).HasField("optimization")
    quantized = dataclasses.replace(FACTS, precision="int8")
    config = encoder_config("amdim_int8_gpu", quantized, max_batch_size=8, accelerate=True)
    (accelerator,) = _parse(config).optimization.execution_accelerators.gpu_execution_accelerator
    assert dict(accelerator.parameters)["precision_mode"] == "INT8"


def test_an_engine_is_found_only_by_the_gpu_it_was_built_on():
    facts = dataclasses.replace(FACTS, precision="fp16")
    parsed = _parse(
        tensorrt_config(
            "amdim",
            facts,
            max_batch_size=64,
            engines={"9.0": "model.sm90.plan"},
            profiles=2,
            tensorrt="10.5.0",
        )
    )
    assert (parsed.name, parsed.backend) == ("amdim_tensorrt", "tensorrt")
    assert dict(parsed.cc_model_filenames) == {"9.0": "model.sm90.plan"}
    assert parsed.default_model_filename == ""
    (group,) = parsed.instance_group
    assert (group.kind, list(group.profile)) == (pb.ModelInstanceGroup.KIND_GPU, ["0", "1"])
    assert [warmup.batch_size for warmup in parsed.model_warmup] == [1, 64]
    assert parsed.parameters["amdim.tensorrt"].string_value == "10.5.0"
    assert parsed.parameters["amdim.precision"].string_value == "fp16"


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
