"""Writes constraints.txt: one version of every package that any environment of this checkout has.

Run `make lock` after a dependency in pyproject.toml changed. Resolves every extra together (but
`gpu`, which excludes `cpu`) and the build backend, so that what one environment installs another
installs at the same version. Knows no environment: scripts/build_env.sh says who installs what.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
EXCLUSIVE_EXTRAS = {"gpu"}
# An editable install from a built environment needs it beside the backend.
BUILD_TOOLS = ["editables"]
# What only a CUDA build of torch brings; this project's environments have CPU builds.
CUDA_PACKAGE = re.compile(r"^(nvidia|cuda)-|^triton$")
HEADER = """\
# Written by scripts/lock.py (`make lock`): every package of every environment, pinned.
"""


def main() -> None:
    """Resolves, and replaces constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = [e for e in project["project"]["optional-dependencies"] if e not in EXCLUSIVE_EXTRAS]
    requirements = [
        f"{ROOT}[{','.join(extras)}]",
        *project["build-system"]["requires"],
        *BUILD_TOOLS,
    ]
    own_name = project["project"]["name"]
    pins = {
        name: version
        for name, version in _resolve(requirements).items()
        if name != own_name and not CUDA_PACKAGE.search(name)
    }
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    CONSTRAINTS.write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(lines)} packages")


def _resolve(requirements: list[str]) -> dict[str, str]:
    """Returns version by normalised name of all that a fresh environment would install."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    done = subprocess.run(
        [*command, "--report", "-", *requirements], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, str] = {}
    for item in json.loads(done.stdout)["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        # A local version (2.13.0+cpu) names one index's build, and a pin without it takes any.
        found[name] = item["metadata"]["version"].partition("+")[0]
    return found


if __name__ == "__main__":
    main()
