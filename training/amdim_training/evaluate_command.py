"""The command that scores an encoder: `amdim evaluate`. Imports torch only once it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from amdim_training.config import ViewsName
    from amdim_training.evaluate import Evaluation


def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A checkpoint or run folder, an exported model (repository, model folder, version "
            "or .onnx file), or a .pth/.ckpt file of the original program or its port.",
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="Parquet packs joined by commas, a folder with a folder a split, or a name: "
            "cifar10 (from the hub), cifar10:DIR, stl10:DIR, hf:OWNER/NAME; repeat for more.",
        ),
    ],
    protocol: Annotated[
        str,
        typer.Option(
            help="Of knn, retrieval, linear, mlp (on vectors encoded once) and frozen (the paper's "
            "linear and MLP, a fresh view an epoch); joined by commas."
        ),
    ] = "knn,retrieval",
    features: Annotated[
        str, typer.Option(help="Of embedding, global, mean5, mean7; joined by commas.")
    ] = "embedding,global,mean5,mean7",
    fit_on: Annotated[
        list[Path] | None,
        typer.Option(help="Training images that a missing search vector is fitted on."),
    ] = None,
    gallery_limit: Annotated[int, typer.Option(min=0, help="Gallery images; 0: all.")] = 0,
    query_limit: Annotated[int, typer.Option(min=0, help="Query images; 0: all.")] = 0,
    epochs: Annotated[
        int, typer.Option(min=0, help="Of frozen; 0: the paper's 120, 30 or 15 by data set.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=2, help="Of frozen.")] = 200,
    views: Annotated[
        str,
        typer.Option(help="Of frozen: cifar, stl10, imagenet, strong; as trained if not given."),
    ] = "",
    source_size: Annotated[
        int, typer.Option(min=0, help="Of frozen: side of training pictures; 0: as trained.")
    ] = 0,
    reference_scoring: Annotated[
        bool,
        typer.Option(
            "--reference-scoring",
            help="Of frozen: test batches refresh batch norms and the last is dropped, as the "
            "original program does. For comparison only: test images then decide.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of frozen.")] = 0,
    device: Annotated[str, typer.Option(help="Where a checkpoint's encoder runs.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch's choice.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score an encoder on labelled images: kNN, retrieval, linear and MLP classifiers."""
    import json

    import torch
    from rich.console import Console

    from amdim_training.allocator import keep_freed_memory
    from amdim_training.evaluate import evaluate as run
    from amdim_training.evaluation_data import open_dataset
    from amdim_training.features import open_encoder
    from amdim_training.frozen import FrozenOptions

    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    evaluation = run(
        open_encoder(model, device=device),
        [open_dataset(value) for value in data],
        protocols=_names(protocol),
        features=_names(features),
        fit_on=fit_on or (),
        gallery_limit=gallery_limit or None,
        query_limit=query_limit or None,
        frozen=FrozenOptions(
            epochs, batch_size, _views(views), source_size, reference_scoring, seed
        ),
        report=progress.print,
    )
    if as_json:
        print(json.dumps(evaluation.to_dict(), indent=2))
    else:
        _print_table(evaluation)


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _views(value: str) -> ViewsName | None:
    from typing import get_args

    from amdim_training.config import ViewsName
    from amdim_training.errors import ConfigError

    known: tuple[ViewsName, ...] = get_args(ViewsName)
    if value and value not in known:
        raise ConfigError(f"--views is one of {', '.join(known)}, not {value!r}")
    return next((name for name in known if name == value), None)


def _print_table(evaluation: Evaluation) -> None:
    """Prints a row for each data set, task and kind of vector, a column for each number."""
    from rich.console import Console
    from rich.table import Table

    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for score in evaluation.scores:
        row = rows.setdefault((score.data, score.task, score.features), {})
        row["gallery"], row["queries"] = str(score.gallery), str(score.queries)
        row |= {name: f"{100 * value:.2f}" for name, value in score.metrics.items()}
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    table = Table(title=", ".join(f"{key} {value}" for key, value in evaluation.encoder.items()))
    for heading in ("data", "task", "features"):
        table.add_column(heading, no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for key, row in rows.items():
        table.add_row(*key, *(row.get(name, "") for name in columns))
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width to keep to
    console.print(table)
    console.print(f"Shares in percent; embedding: {evaluation.embedding}", highlight=False)
