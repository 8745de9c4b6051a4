#!/usr/bin/env bash
# Installs the CPU build of the torch that constraints.txt pins: install_torch.sh PYTHON
#
# Gigabytes of CUDA libraries come with torch's default build on Linux, so: the CPU index first;
# where it cannot be reached, the default index, but only if what it offers brings no CUDA.
#
#   AMDIM_TORCH_CPU_INDEX    another CPU index; empty skips this step
#   AMDIM_ALLOW_CUDA_TORCH   1 takes whatever build the default index gives
set -euo pipefail

python=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
constraints=$root/constraints.txt
torch=$(grep -E '^torch==' "$constraints")
version=${torch#torch==}
cpu_index=${AMDIM_TORCH_CPU_INDEX-https://download.pytorch.org/whl/cpu}

pip_install() {
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
}

is_installed() {
    "$python" - "$version" <<'PY'
import sys
from importlib import metadata

try:
    found = metadata.version("torch").partition("+")[0]
except metadata.PackageNotFoundError:
    found = None
sys.exit(found != sys.argv[1])
PY
}

# Prints the CUDA packages that the default index's build would bring, one a line.
cuda_packages() {
    local report
    report=$(pip_install --dry-run --report - --constraint "$constraints" "$torch")
    "$python" -c '
import json, re, sys

for item in json.load(sys.stdin)["install"]:
    name = item["metadata"]["name"]
    if re.match(r"(nvidia|cuda)[-_]|triton$", name):
        print(name)
' <<<"$report"
}

if is_installed; then
    exit 0
fi

# The CPU index's own builds carry the local version +cpu; the Mac's need none, all are CPU.
if [[ -n $cpu_index && $(uname -s) != Darwin ]]; then
    echo "torch $version: asking $cpu_index"
    if pip_install --no-deps --timeout 15 --retries 0 --index-url "$cpu_index" "$torch+cpu"; then
        exit 0
    fi
    echo "torch $version: the CPU index gave no build; asking the default index"
fi

if [[ ${AMDIM_ALLOW_CUDA_TORCH:-} != 1 ]]; then
    cuda=$(cuda_packages)
    if [[ -n $cuda ]]; then
        echo "install_torch.sh: not installing torch $version, for the default index's build brings" \
            "$(wc -l <<<"$cuda" | tr -d ' ') CUDA packages (gigabytes)." \
            "Try again when $cpu_index can be reached, or set AMDIM_ALLOW_CUDA_TORCH=1 to take it." >&2
        exit 1
    fi
fi
pip_install --constraint "$constraints" "$torch"
