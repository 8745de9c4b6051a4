#!/usr/bin/env bash
# Builds .venv/triton, the pinned Triton server for tests; does nothing while it is up to date.
#   PYTHON   a Python 3.11; default the first of python3.11, python3
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
env=$root/.venv/triton
wanted=$({ echo "$root" && cat "$here"/requirements-*.txt "$here/build.sh"; } | cksum)

if [[ -f $env/.ready && $(cat "$env/.ready") == "$wanted" ]]; then
    exit 0
fi

python=${PYTHON:-$(command -v python3.11 || command -v python3)}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "build.sh: Triton's Python backend needs Python 3.11, not $("$python" --version 2>&1)" >&2
    exit 1
}
echo "[.venv/triton] building with $("$python" --version)"
rm -rf "$env"
"$python" -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-deps --require-hashes -r "$here/requirements-server.txt"
# only what the backends import, all of it pinned: the server's own Python package is not used
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-deps -r "$here/requirements-backend.txt"
# the decoding step of amdim_image imports amdim_clients.images; a PYTHONPATH does not reach it
site=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$root/clients" >"$site/amdim_clients.pth"
echo "$wanted" >"$env/.ready"
