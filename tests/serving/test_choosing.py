from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amdim_serving.choosing import list_candidates, open_engine, settle
from amdim_serving.errors import CanaryError, ProviderError, StartError
from amdim_serving.gateway import build_gateway, reopen_gateway
from amdim_serving.settings import Settings

pytest.importorskip("openvino")

BF16 = {
    "engine": "openvino",
    "qualifies": None,
    "speedup": None,
    "tolerance": {"max_relative_error": 0.1, "min_cosine": 0.99},
}


def settings(repository: Path, **values: object) -> Settings:
    return Settings(model_repository=repository, **{"threads": 1, **values})  # type: ignore[arg-type]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, certified for bf16 too."""
    root = tmp_path / "models"
    shutil.copytree(repository, root)
    certificate = root / "amdim" / "1" / "certificate.json"
    edit(certificate, lambda document: document.update(precisions={"bf16": BF16}))
    return root


def add_int8(root: Path, *, qualifies: bool = True, encoder: str | None = None) -> None:
    """Publishes the tiny model as if it were quantized; what counts here is what is said of it."""
    folder = root / "amdim_int8"
    shutil.copytree(root / "amdim", folder)
    config = folder / "config.pbtxt"
    text = config.read_text().replace('"fp32"', '"int8"').replace('"amdim"', '"amdim_int8"')
    said = {**BF16, "qualifies": qualifies}

    def change(document: dict[str, Any]) -> None:
        document.update(precision="int8", precisions={"int8": said})
        if encoder is not None:
            document.update(encoder_digest=encoder)

    edit(folder / "1" / "certificate.json", change)
    if encoder is not None:
        text = text.replace("sha256:" + "e" * 64, encoder)
    config.write_text(text)


def ways(found: Settings) -> set[tuple[str, str]]:
    return {(one.engine, one.precision) for one in list_candidates(found)}


def test_auto_measures_what_is_certified_and_serves_the_fastest(models: Path) -> None:
    opened = open_engine(settings(models))
    by_way = {(one.engine, one.precision): one for one in opened.tried}
    assert set(by_way) == {("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32")}
    chosen = by_way[opened.engine.info.engine, opened.engine.info.precision]
    assert chosen.images_per_s is not None
    fp32 = [one.images_per_s or 0.0 for one in opened.tried if one.precision == "fp32"]
    assert chosen.images_per_s >= max(fp32) / 1.2
    opened.engine.close()


def test_the_most_promising_is_tried_first(models: Path) -> None:
    order = [(one.engine, one.precision) for one in list_candidates(settings(models))]
    assert order == [("openvino", "bf16"), ("onnxruntime", "fp32"), ("openvino", "fp32")]


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")],
)
def test_what_is_named_is_what_runs(models: Path, engine: str, precision: str) -> None:
    opened = open_engine(settings(models, engine=engine, precision=precision))
    assert (opened.engine.info.engine, opened.engine.info.precision) == (engine, precision)
    assert opened.certificate.precision == precision and opened.tried == ()
    opened.engine.close()


@pytest.mark.parametrize(
    ("engine", "precision", "message"),
    [
        ("auto", "int8", "certified for fp32, bf16, not for int8"),
        ("onnxruntime", "bf16", "does not run amdim at bf16"),
    ],
)
def test_what_cannot_run_is_a_sentence(
    models: Path, engine: str, precision: str, message: str
) -> None:
    with pytest.raises(StartError, match=message):
        open_engine(settings(models, engine=engine, precision=precision))


def test_a_precision_that_misses_its_targets_is_served_only_by_name(models: Path) -> None:
    add_int8(models, qualifies=False)
    assert not [way for way in ways(settings(models)) if "int8" in way]
    named = list_candidates(settings(models, precision="int8", engine="openvino"))
    assert [(one.engine, one.precision) for one in named] == [("openvino", "int8")]
    (artifact,) = [one.artifact for one in named]
    assert (artifact.spec.name, artifact.spec.version, artifact.config.name) == (
        *("amdim", "1"),
        "amdim",
    )
    with pytest.raises(ProviderError, match="int8"):  # nothing in that file multiplies int8
        open_engine(settings(models, precision="int8", engine="openvino"))


def test_an_artifact_of_another_encoder_is_none_of_this_model(models: Path) -> None:
    add_int8(models)
    assert ("openvino", "int8") in ways(settings(models))
    shutil.rmtree(models / "amdim_int8")
    add_int8(models, encoder="sha256:" + "f" * 64)
    assert ("openvino", "int8") not in ways(settings(models))


def test_a_certificate_that_nothing_reproduces_is_refused(lying_repository: Path) -> None:
    with pytest.raises(CanaryError):
        open_engine(settings(lying_repository))


def test_a_reload_keeps_what_serves_and_says_what_it_was_chosen_among(models: Path) -> None:
    first = build_gateway(settings(models, engine="auto", precision="fp32"))
    shown = first.describe()["models"]["amdim"]
    assert {one["engine"] for one in shown["chosen_among"]} == {"openvino", "onnxruntime"}
    second = reopen_gateway(first)
    assert second.service.engine.info == first.service.engine.info
    assert second.tried == ()


def test_several_processes_share_one_choice(models: Path) -> None:
    named = settle(settings(models))
    assert "auto" not in (named.engine, named.precision)
    assert settle(named) is named
