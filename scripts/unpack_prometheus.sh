#!/usr/bin/env bash
# Unpacks Debian's prometheus and promtool into .venv/prometheus, for the tests of deploy/.
#
# Not installed: the package starts a service that holds a port. Needs no root but to fetch the
# package lists where there are none.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
into=$root/.venv/prometheus

if command -v promtool >/dev/null && command -v prometheus >/dev/null; then exit 0; fi
if [[ -x $into/usr/bin/promtool ]]; then exit 0; fi

download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
chmod 755 "$download"
fetch() { (cd "$download" && apt-get download -q prometheus 2>/dev/null); }
if ! fetch; then
    sudo=()
    [[ $(id -u) == 0 ]] || sudo=(sudo)
    "${sudo[@]}" apt-get update -q
    fetch
fi
mkdir -p "$into"
dpkg --extract "$download"/prometheus_*.deb "$into"
"$into/usr/bin/promtool" --version | head -1
