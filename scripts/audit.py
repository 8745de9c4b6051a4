"""Looks the pinned packages up for known vulnerabilities, and says plainly when nobody answered.

    python scripts/audit.py [--where-reachable]

Exit status 1 when a pinned version is known to be vulnerable, or when the advisory service could
not be asked; with --where-reachable the latter is 0, for machines that cannot reach it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
_LONGEST_S = 300


def ask() -> tuple[list[dict[str, Any]], str]:
    """Returns pip-audit's entry for each pinned package, and what it said otherwise."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(PINS), "--no-deps"]
    command += ["--disable-pip", "--progress-spinner", "off", "--format", "json"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S)
    except subprocess.TimeoutExpired:
        return [], f"no answer in {_LONGEST_S} s"
    try:
        entries: list[dict[str, Any]] = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [], (ran.stderr.strip() or "pip-audit said nothing").splitlines()[-1]
    return entries, ""


def judge(entries: Sequence[dict[str, Any]], problem: str, *, must_reach: bool) -> tuple[int, str]:
    """Returns the exit status and what to print.

    Args:
        entries: As `ask` returned them.
        problem: Likewise.
        must_reach: Whether a service that cannot be asked is a failure.
    """
    audited = [entry for entry in entries if "skip_reason" not in entry]
    if not audited:
        why = problem or entries[0]["skip_reason"] if entries else problem or "nothing is pinned"
        return int(must_reach), f"audit: NOT DONE, the advisory service cannot be asked: {why}"
    lines = [
        f"audit: {entry['name']} {entry['version']}: {found['id']}, fixed in "
        + (", ".join(found["fix_versions"]) or "no version yet")
        for entry in audited
        for found in entry["vulns"]
    ]
    vulnerable = bool(lines)
    lines += [
        f"audit: {entry['name']} not looked up: {entry['skip_reason']}"
        for entry in entries
        if "skip_reason" in entry
    ]
    lines.append(f"audit: {len(audited)} of {len(entries)} pinned packages looked up")
    return int(vulnerable), "\n".join(lines)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Look up the pinned packages' vulnerabilities.")
    parser.add_argument("--where-reachable", action="store_true", help="pass where nobody answers")
    options = parser.parse_args()
    status, said = judge(*ask(), must_reach=not options.where_reachable)
    print(said)
    return status


if __name__ == "__main__":
    sys.exit(main())
