from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from amdim_clients.images import Preprocess
from amdim_export.graph import ServingGraph
from amdim_export.to_onnx import to_onnx
from amdim_training.checkpoint import save_checkpoint
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import CheckpointError, ConfigError, DataError
from amdim_training.evaluate import evaluate
from amdim_training.evaluate_command import evaluate as command
from amdim_training.evaluation_data import open_dataset
from amdim_training.features import OnnxEncoder, TorchEncoder, open_encoder
from amdim_training.reference import save_reference
from amdim_training.search_vector import search_widths
from amdim_training.views import VIEWS
from amdim_training.whitening import Whitening

NORMALIZATION = VIEWS["cifar"].normalization
COLORS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 40]])


def picture(label: int, rng: np.random.Generator) -> bytes:
    """A noisy picture whose colour is its class."""
    pixels = COLORS[label] + rng.normal(0, 25, (40, 36, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_pack(path: Path, splits: dict[str, int], *, seed: int = 0) -> Path:
    """A Parquet pack with so many pictures of each split, classes in turn."""
    rng = np.random.default_rng(seed)
    rows = [(split, i % len(COLORS)) for split, count in splits.items() for i in range(count)]
    images = [
        {"bytes": picture(label, rng), "path": f"{i}.png"} for i, (_, label) in enumerate(rows)
    ]
    columns = {
        "image": images,
        "label": [label for _, label in rows],
        "split": [split for split, _ in rows],
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="session")
def encoder() -> AmdimEncoder:
    torch.manual_seed(0)
    return AmdimEncoder(EncoderConfig(32, 8, 32, 1)).eval()


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "colors.parquet", {"train": 80, "val": 24, "test": 8})


@pytest.fixture
def products(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "products.parquet", {"natural": 20, "iconic": 4})


def test_colours_are_told_apart_by_every_protocol(
    encoder: AmdimEncoder, classes: Path, products: Path
) -> None:
    lines: list[str] = []
    evaluation = evaluate(
        TorchEncoder(encoder, NORMALIZATION),
        [open_dataset(str(classes)), open_dataset(str(products))],
        protocols=("knn", "retrieval", "linear", "mlp"),
        features=("embedding", "global", "mean5"),
        report=lines.append,
    )

    scores = {(s.task, s.features, s.protocol): s for s in evaluation.scores}
    expected = {
        (task, kind, protocol)
        for task, protocols in [
            ("val->train", ("knn", "retrieval", "linear", "mlp")),
            ("natural->natural", ("retrieval",)),
            ("natural->iconic", ("retrieval",)),
        ]
        for kind in ("embedding", "global", "mean5")
        for protocol in protocols
    }
    assert set(scores) == expected
    for kind in ("global", "mean5"):
        for protocol, metric in [("knn", "knn20"), ("knn", "knn5"), ("linear", "linear")]:
            assert scores["val->train", kind, protocol].metrics[metric] > 0.9
    assert scores["val->train", "global", "knn"].gallery == 80
    assert scores["natural->iconic", "mean5", "retrieval"].metrics["recall@1"] > 0.9
    assert evaluation.embedding == "fitted on 80 training images of colors"
    assert len(lines) == len(scores) + 4  # two splits each
    json.dumps(evaluation.to_dict())


def test_several_packs_are_one_data_set(tmp_path: Path, classes: Path) -> None:
    more = write_pack(tmp_path / "more.parquet", {"train": 12}, seed=1)
    dataset = open_dataset(f"{classes},{more}")

    preprocess = Preprocess.for_image_size(32)
    assert len(dataset.load("train", preprocess)) == 92
    assert len(dataset.load("val", preprocess)) == 24


def test_folder_with_a_folder_for_each_split_is_a_data_set(
    tmp_path: Path, encoder: AmdimEncoder
) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for label in range(3):
            folder = tmp_path / "set" / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.png").write_bytes(picture(label, rng))

    evaluation = evaluate(
        TorchEncoder(encoder, NORMALIZATION),
        [open_dataset(str(tmp_path / "set"))],
        protocols=["knn"],
        features=["mean7"],
    )

    (score,) = evaluation.scores
    assert (score.gallery, score.queries) == (18, 6)
    assert score.metrics["knn5"] == 1.0


def test_limits_take_a_fixed_subset(encoder: AmdimEncoder, classes: Path) -> None:
    dataset = [open_dataset(str(classes))]
    model = TorchEncoder(encoder, NORMALIZATION)

    runs = [
        evaluate(model, dataset, features=["global"], gallery_limit=40, query_limit=10)
        for _ in range(2)
    ]

    assert runs[0].scores[0].gallery == 40
    assert runs[0].scores[0].queries == 10
    assert [s.metrics for s in runs[0].scores] == [s.metrics for s in runs[1].scores]


def test_unknown_names_and_unfit_data_are_named(
    tmp_path: Path, encoder: AmdimEncoder, classes: Path
) -> None:
    model = TorchEncoder(encoder, NORMALIZATION)
    with pytest.raises(ConfigError, match="unknown protocol 'svm'"):
        evaluate(model, [], protocols=["svm"])
    with pytest.raises(ConfigError, match="unknown features 'f5'"):
        evaluate(model, [], features=["f5"])
    unsplit = write_pack(tmp_path / "unsplit.parquet", {"train": 4})
    with pytest.raises(DataError, match=r"\['train'\]; needed are train with one of val"):
        open_dataset(str(unsplit))
    with pytest.raises(DataError, match=r"there is no file .*absent\.parquet"):
        open_dataset(str(tmp_path / "absent.parquet"))


def test_exported_model_scores_as_its_checkpoint(
    tmp_path: Path, encoder: AmdimEncoder, classes: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    width = sum(search_widths(encoder.config))
    whitening = Whitening(torch.zeros(width), torch.randn(16, width, generator=generator))
    graph = ServingGraph(encoder, NORMALIZATION, whitening)
    example = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    version = tmp_path / "repository" / "amdim" / "3"
    version.mkdir(parents=True)
    model = to_onnx(graph, example, output_names=graph.output_names, dynamic={0: "batch"})
    (version / "model.onnx").write_bytes(model)
    (version.parent / "config.pbtxt").write_text('name: "amdim"')

    exported = open_encoder(tmp_path / "repository")
    pixels = open_dataset(str(classes)).load("val", Preprocess.for_image_size(32)).pixels
    ours = TorchEncoder(encoder, NORMALIZATION, whitening).encode(pixels)
    theirs = exported.encode(pixels)

    assert isinstance(exported, OnnxEncoder) and exported.image_size == 32
    assert torch.allclose(ours.pooled, theirs.pooled, atol=1e-4)
    assert ours.embedding is not None and theirs.embedding is not None
    assert torch.allclose(ours.embedding, theirs.embedding, atol=1e-3)
    for path in (version.parent, version, version / "model.onnx"):
        assert isinstance(open_encoder(path), OnnxEncoder)
    with pytest.raises(ConfigError, match="score its checkpoint"):
        evaluate(exported, [open_dataset(str(classes))], fit_on=[classes])


def test_reference_file_is_opened_and_anything_else_refused(
    tmp_path: Path, encoder: AmdimEncoder
) -> None:
    save_reference(tmp_path / "amdim_cpt.pth", encoder)

    assert open_encoder(tmp_path / "amdim_cpt.pth").image_size == 32
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        open_encoder(tmp_path / "absent")


def test_command_prints_json_or_a_table(
    tmp_path: Path, encoder: AmdimEncoder, classes: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", encoder, NORMALIZATION)
    app = Typer()
    app.command()(command)
    arguments = [str(checkpoint), "--data", str(classes), "--features", "global,mean5"]

    result = CliRunner().invoke(app, [*arguments, "--protocol", "knn", "--json"])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)["scores"]
    assert [score["features"] for score in scores] == ["global", "mean5"]
    assert scores[0]["metrics"]["knn20"] > 0.9

    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for text in ("val->train", "knn20", "recall@5", "mean5", "100.00"):
        assert text in result.stdout
