r"""Makes any GPU useful for a few minutes: trains from weights, on data that still arrives.

    python training/cut_parts.py PACK.parquet ... --to parts
    python training/gpu_slice.py --parts parts --resume training/checkpoints/tiny64-undecayed \
        --deadline 540 --out slice
    python training/join_pieces.py slice ema runs/after-slice

It starts on the parts that are there and takes in later ones; parts have to be written aside and
renamed. `slice/` gets fp16 pieces under 15 MiB: `raw-*` to go on from, `ema-*` of averaged weights.
With `--decay 0.3` the rate falls to zero over the last 30 % of the time: `undecayed-*` are then the
weights before that. Without a GPU it runs on the CPU, slowly.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import torch

from amdim_training.checkpoint import load_checkpoint
from amdim_training.errors import TrainingError
from amdim_training.parts import PartsFolder
from amdim_training.pieces import is_pieces, load_pieces, save_pieces, save_pieces_config
from amdim_training.slices import Slice, SliceConfig
from amdim_training.views import VIEWS

_log = logging.getLogger("gpu_slice")

SAVING_S = 5.0
"""Kept back of the deadline for the averaged norms and the files."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _parser().parse_args(arguments)
    try:
        train(options)
    except TrainingError as error:
        print(f"gpu_slice: {error}", file=sys.stderr)
        return 1
    return 0


def train(options: argparse.Namespace) -> None:
    """Runs one slice.

    Raises:
        TrainingError: No parts came, or what was to be gone on from cannot be read.
    """
    ends = time.monotonic() + options.deadline
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = (
        load_pieces(options.resume, "raw")
        if is_pieces(options.resume)
        else load_checkpoint(options.resume)
    )
    config = SliceConfig(
        batch_size=options.batch,
        optimizer=options.optimizer,
        learning_rate=options.rate,
        precision=options.precision,
        compiled=options.compiled,
        log_every=options.log_every,
        seed=options.seed,
    )
    work = Slice(start.encoder, VIEWS[options.views], config, device)
    parts = PartsFolder(options.parts, start.encoder.config.image_size)
    while work.pictures < options.batch and time.monotonic() < ends:
        for pixels in parts.take_new():
            work.take(torch.from_numpy(pixels))
        if work.pictures < options.batch:
            time.sleep(0.2)
    _log.info("%d pictures on %s; torch %s", work.pictures, device, torch.__version__)

    options.out.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, float]] = []

    def note(record: dict[str, float]) -> None:
        records.append(record)
        _log.info("%s", "  ".join(f"{name} {value:.4g}" for name, value in record.items()))

    def more() -> list[torch.Tensor]:
        return [torch.from_numpy(pixels) for pixels in parts.take_new()]

    def save(name: str, encoder: torch.nn.Module) -> None:
        save_pieces(options.out, encoder.state_dict(), name)
        meta = {"step": work.step, "log": records, "torch": torch.__version__}
        save_pieces_config(options.out, start.encoder.config, start.normalization, meta)

    left = ends - time.monotonic() - SAVING_S
    work.run(left * (1.0 - options.decay), note=note, more=more)
    if options.decay:
        save("undecayed", work.encoder)
        work.run(ends - time.monotonic() - SAVING_S, decay=1.0, note=note)
    save("raw", work.encoder)
    save("ema", work.averaged())
    print(json.dumps({"updates": work.step, "pictures": work.pictures, "out": str(options.out)}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", type=Path, required=True, help="folder that parts arrive in")
    parser.add_argument("--resume", type=Path, required=True, help="checkpoint or pieces")
    parser.add_argument("--deadline", type=float, required=True, help="seconds, all in")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pieces")
    parser.add_argument("--decay", type=float, default=0.0, help="last share of the time")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--optimizer", default="muon", choices=["muon", "adam"])
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--views", default="stl10", choices=["stl10", "imagenet"])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    return parser


if __name__ == "__main__":
    sys.exit(main())
