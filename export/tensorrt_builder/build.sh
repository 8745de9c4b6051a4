#!/usr/bin/env bash
# Builds .venv/tensorrt, the pinned TensorRT-RTX whose parser and compiler run without a GPU; does
# nothing while it is up to date. 96 MB to download, 260 MB on disk, Linux on x86-64.
#   PYTHON   a Python 3.11 to 3.13; default python3
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
env=$root/.venv/tensorrt
wanted=$({ echo "$root" && cat "$here/requirements.txt" "$here/build.sh"; } | cksum)

if [[ -f $env/.ready && $(cat "$env/.ready") == "$wanted" ]]; then
    exit 0
fi

python=${PYTHON:-python3}
echo "[.venv/tensorrt] building with $("$python" --version)"
rm -rf "$env"
"$python" -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-deps --require-hashes -r "$here/requirements.txt"
# compile.py calls the project's own builder, which needs the standard library only
site=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$root/export" >"$site/amdim_export.pth"
echo "$wanted" >"$env/.ready"
