import json
from pathlib import Path

import pytest

from amdim_training.config import EncoderConfig, TrainConfig
from amdim_training.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert TrainConfig.load(path).optim.batch_size > 1


def test_a_configuration_survives_json() -> None:
    config = TrainConfig.from_dict({"encoder": {"width": 8, "embed_dim": 64}, "optim": {"eps": 1}})
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.optim.eps == 1.0


def test_overrides_are_toml_values_or_bare_words(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[encoder]\nwidth = 8\nembed_dim = 64\n")
    config = TrainConfig.load(
        path, ["encoder.depth=3", "run.out=elsewhere", 'data.train=["a", "b"]', "optim.eps=1e-7"]
    )
    assert config.encoder == EncoderConfig(width=8, embed_dim=64, depth=3)
    assert (config.run.out, config.data.train, config.optim.eps) == ("elsewhere", ("a", "b"), 1e-7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encode": {}}, "unknown section 'encode'"),
        ({"encoder": {"widht": 3}}, "unknown key encoder.widht"),
        ({"encoder": {"width": "3"}}, "encoder.width must be like 32"),
        ({"encoder": {"width": True}}, "encoder.width must be like 32"),
        ({"encoder": {"image_size": 96}}, "image_size must be 32, 64 or 128"),
        ({"encoder": {"width": 64}}, "embed_dim 256 is below 512"),
        ({"encoder": {"depth": 0}}, "at least 1"),
        ({"encoder": 3}, "encoder must be a table"),
    ],
)
def test_what_is_wrong_is_named(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(values)


@pytest.mark.parametrize("override", ["width=3", "encoder.width", "encoder=3", ""])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text("")
    with pytest.raises(ConfigError):
        TrainConfig.load(path, [override])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration at"):
        TrainConfig.load(tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("[encoder")
    with pytest.raises(ConfigError, match="is not TOML"):
        TrainConfig.load(path)


def test_every_shipped_configuration_says_how_it_is_run_and_what_came_of_it() -> None:
    for path in CONFIGS:
        header = path.read_text().partition("\n[")[0]
        assert f"amdim_clients.cli train training/configs/{path.name}" in header or (
            f"amdim train training/configs/{path.name}" in header
        )
        assert "Hardware:" in header, path.name
        assert "Result:" in header or "Reached:" in header, path.name


def test_an_unknown_pipeline_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.views is one of cifar, .*strong, not 'sift'"):
        TrainConfig.from_dict({"data": {"views": "sift"}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"crop_scale": [0.5]}, "two shares"),
        ({"crop_scale": [0.9, 0.5]}, "two shares"),
        ({"crop_scale": [0.0, 0.5]}, "two shares"),
        ({"crop_scale": [0.5, 1.0], "views": "cifar"}, "never cropped"),
        ({"color_strength": -0.1}, "0 to 2.5"),
        ({"color_strength": 3.0}, "0 to 2.5"),
    ],
)
def test_a_strength_that_no_view_can_have_is_refused(data, message) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict({"data": data})
