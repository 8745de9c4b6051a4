"""What search finds and what it costs: prints tables, keeps the numbers in results/search.json.

python benchmarks/search.py                    # quality: about four minutes on two cores
python benchmarks/search.py --only scale       # 10,000 to a million synthetic vectors
python benchmarks/search.py --only cost        # indexing, and windows
python benchmarks/search.py --only client      # what a client spends beside its server
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("regions", "pictures", "duplicates", "scale", "cost", "client")


def main() -> None:
    """Measures the sections asked for, prints them, and keeps them beside the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS[:3])
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--caltech", type=int, default=5, help="pictures of each class")
    parser.add_argument("--photos", type=int, default=150, help="photographs to vary")
    parser.add_argument("--copies", type=int, default=8, help="of 128 pictures, to be indexed")
    parser.add_argument("--images", type=int, default=560, help="sent by each client")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/search.json")
    arguments = parser.parse_args()
    if arguments.caltech < 2:
        parser.error("--caltech: two pictures of a class at least, or none has another to find")
    kept = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for section in arguments.only:
        kept[section] = _measure(section, arguments)
        _print(section, kept[section])
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _measure(section: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    import search_client
    import search_pictures
    import search_quality
    import search_scale

    if section == "client":
        return search_client.client(arguments.repository, arguments.images)
    if section == "scale":
        return search_scale.scale(arguments.sizes)
    models = search_quality.Models.open(arguments.repository)
    if section == "regions":
        return search_quality.regions(models, arguments.data)
    if section == "pictures":
        return search_pictures.pictures(models, arguments.data, arguments.caltech)
    if section == "duplicates":
        return search_pictures.duplicates(models, arguments.data, arguments.photos)
    return search_scale.cost(models, arguments.data, arguments.copies)


def _print(section: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = Table("", *columns, title=section)
    for name, row in rows.items():
        table.add_row(name, *(f"{row[c]:.4g}" if c in row else "" for c in columns))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
