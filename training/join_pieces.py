"""Makes a checkpoint of the pieces that `gpu_slice.py` left.

python training/join_pieces.py slice ema runs/after-slice
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from amdim_training.checkpoint import save_checkpoint
from amdim_training.pieces import load_pieces


def main() -> None:
    """Writes the checkpoint, as fp16 like the pieces."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pieces", type=Path)
    parser.add_argument("name", choices=["raw", "ema", "undecayed"])
    parser.add_argument("to", type=Path)
    options = parser.parse_args()
    found = load_pieces(options.pieces, options.name)
    save_checkpoint(
        options.to, found.encoder, found.normalization, meta=found.meta, dtype=torch.float16
    )
    print(f"{options.to}: {found.meta['step']} updates of the slice")


if __name__ == "__main__":
    main()
