#!/usr/bin/env bash
# Builds or updates a virtual environment of this checkout: build_env.sh serve|dev
#
# .venv/NAME/.ready holds a fingerprint of all that decides the environment; while it matches,
# nothing is done. A changed pin is installed in place. A build that was killed, or that failed
# before the environment first stood, leaves .venv/NAME.building behind, and the next call starts
# that environment afresh.
#
#   PYTHON   the interpreter to build with; default the first of python3, python3.13, ... >= 3.11
set -euo pipefail

name=${1:?usage: build_env.sh serve|dev}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
env=$root/.venv/$name
building=$root/.venv/$name.building
inputs=(pyproject.toml constraints.txt scripts/build_env.sh scripts/install_torch.sh)

case $name in
serve) extras=serve,cpu,openvino,client,search ;;
dev) extras=serve,cpu,openvino,client,search,qdrant,faiss,train,export,dev ;;
*)
    echo "build_env.sh: no environment is called $name; there are serve and dev" >&2
    exit 2
    ;;
esac

say() { echo "[.venv/$name] $*"; }

fail() {
    echo "build_env.sh: $*" >&2
    exit 1
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a program on this machine"
        is_recent "$PYTHON" ||
            fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1); Python 3.11 or newer is needed"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
        if command -v "$candidate" >/dev/null && is_recent "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3 ..."
}

# The folder is part of it: an environment knows its checkout by an absolute path.
fingerprint() {
    (cd "$root" && { pwd && cat "${inputs[@]}"; } | cksum)
}

# Holds the environment against a second make; clears what an interrupted one left.
claim() {
    local owner=
    mkdir -p "$root/.venv"
    [[ -f $building ]] && owner=$(cat "$building")
    if [[ -n $owner ]] && kill -0 "$owner" 2>/dev/null; then
        fail ".venv/$name is being built by process $owner; wait for it to end"
    fi
    if [[ -f $building ]]; then
        say "an earlier build was cut short; starting afresh"
        rm -rf "$env"
    fi
    echo $$ >"$building"
}

create() {
    local python
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
    say "creating with $("$python" --version)"
    "$python" -m venv "$env"
}

install() {
    local python=$env/bin/python
    local pip=("$python" -m pip install --quiet --disable-pip-version-check
        --constraint "$root/constraints.txt")
    "${pip[@]}" hatchling editables
    if [[ $name == dev ]]; then
        bash "$root/scripts/install_torch.sh" "$python"
    fi
    "${pip[@]}" --no-build-isolation --editable "${root}[$extras]"
}

# pip takes back an update that fails, so an environment that stood before is kept.
release() {
    local status=$?
    if ((status == 0 || (status < 128 && existed))); then
        rm -f "$building"
    fi
}

if [[ -f $env/.ready && ! -f $building && $(cat "$env/.ready") == "$(fingerprint)" ]]; then
    exit 0
fi
start=$SECONDS
claim
existed=0
[[ -x $env/bin/python ]] && existed=1
trap release EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
rm -f "$env/.ready"
((existed)) || create
say "installing $extras"
install
fingerprint >"$env/.ready"
say "ready after $((SECONDS - start)) s"
