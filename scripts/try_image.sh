#!/usr/bin/env bash
# Builds deploy/Dockerfile and asks the server in the image for a vector, without Docker and without
# a registry: buildah, and a Debian that debootstrap makes where the file says python:3.11-slim.
#
#   sudo apt-get install buildah debootstrap; sudo bash scripts/try_image.sh PHOTO.jpg
#
# Root, a Debian of Python 3.11, 3 GB in $TMPDIR. Not shown by it: the health check and the read-only
# file system, which are Docker's.
set -euo pipefail

photo=$(realpath "${1:?a photo to embed}")
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
port=${PORT:-18440}
certificates=/etc/ssl/certs/ca-certificates.crt
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
storage=(--root "$work/images" --runroot "$work/run")
server=

finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    buildah "${storage[@]}" rm --all >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT

echo "a base image"
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm \
    "$work/base" >"$work/base.log" || { tail "$work/base.log"; exit 1; }
ln -s /usr/bin/python3 "$work/base/usr/local/bin/python"
base=$(buildah "${storage[@]}" from scratch)
buildah "${storage[@]}" copy --quiet "$base" "$work/base" / >/dev/null
buildah "${storage[@]}" commit --quiet "$base" docker.io/library/python:3.11-slim >/dev/null

echo "the image"
buildah "${storage[@]}" bud --pull-never --network host --env "PIP_CERT=$certificates" \
    --volume /etc/ssl/certs:/etc/ssl/certs:ro \
    --volume /usr/share/ca-certificates:/usr/share/ca-certificates:ro \
    --file "$root/deploy/Dockerfile" --tag amdim-embed "$root" >"$work/image.log" 2>&1 ||
    { tail -n 20 "$work/image.log"; exit 1; }
buildah "${storage[@]}" images --format '{{.Name}} {{.Size}}' amdim-embed

echo "the server in it"
container=$(buildah "${storage[@]}" from --pull-never amdim-embed)
buildah "${storage[@]}" inspect --format 'user {{.OCIv1.Config.User}}, {{.OCIv1.Config.Entrypoint}}' \
    "$container"
buildah "${storage[@]}" run --network host --env AMDIM_HOST=127.0.0.1 --env "AMDIM_PORT=$port" \
    --env "AMDIM_GRPC_PORT=$((port + 1))" --env "AMDIM_METRICS_PORT=$((port + 2))" \
    "$container" -- /opt/amdim/bin/amdim serve >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq 120); do
    curl --silent --fail "http://127.0.0.1:$port/readyz" >/dev/null && break
    kill -0 "$server" 2>/dev/null || { cat "$work/server.log"; exit 1; }
    sleep 0.5
done
grep '"ready on' "$work/server.log"
curl --silent --fail --data-binary "@$photo" "http://127.0.0.1:$port/embed" | cut -c 1-100
pkill -TERM -f "^/opt/amdim/bin/python /opt/amdim/bin/amdim serve"
wait "$server" && echo "ended with 0"
server=
