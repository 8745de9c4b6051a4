"""Cuts packs into parts that `gpu_slice.py` takes in one after the other.

python training/cut_parts.py a.parquet b.parquet --to parts --mib 40
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amdim_training.parts import cut_parts


def main() -> None:
    """Writes the parts and says how large they are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--mib", type=int, default=40, help="of a part before it is deflated")
    options = parser.parse_args()
    for path in cut_parts(
        options.sources, options.to, part_bytes=options.mib * 2**20, splits=("train",)
    ):
        print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
