#!/bin/sh
# Everything /embed takes, with curl. Usage: curl.sh PHOTO [URL]
set -eu
photo=$1
url=${2:-http://127.0.0.1:8000}

# One picture as the body: one unit vector.
curl -sS --fail-with-body --data-binary "@$photo" -H 'Content-Type: image/jpeg' "$url/embed"
echo

# Several as a form, with other outputs. In such requests a bad picture fails alone.
curl -sS --fail-with-body -F "images=@$photo" -F "images=@$photo" "$url/embed?outputs=global,local7"
echo

# JSON, vectors in base64: shorter and exact.
{
  printf '{"images": [{"id": "a", "data": "'
  base64 <"$photo" | tr -d '\n'
  printf '"}], "outputs": ["embedding"], "encoding_format": "base64"}'
} | curl -sS --fail-with-body -H 'Content-Type: application/json' --data-binary @- "$url/embed"
echo
