#!/bin/sh
# Pins the images that compose, the Dockerfiles and Kubernetes name by tag to the digests that the tags have now, in place.
# `make pin` runs it. Our own images, whose tag is a variable in compose, are left as they are. References that have a
# digest get the present one. Needs docker with buildx, and the registries.
set -eu
cd "$(dirname "$0")/.."

for file in docker-compose.yml docker/Dockerfile.* docker/kubernetes/*.yaml; do
    for image in $(sed -nE 's/^(FROM|.*image:) +([^ @$]+:[^ @$]+)([ @].*)?$/\2/p' "$file" | sort -u); do
        digest=$(docker buildx imagetools inspect --format '{{json .Manifest.Digest}}' "$image" | tr -d '"')
        echo "$digest" | grep -qxE 'sha256:[0-9a-f]{64}' || { echo "no digest of $image: $digest" >&2; exit 1; }
        sed -E "s#^(FROM|.*image:)( +)$image(@sha256:[0-9a-f]+)?( .*)?\$#\1\2$image@$digest\4#" "$file" > "$file.pinned"
        cat "$file.pinned" > "$file"
        rm "$file.pinned"
        echo "$file: $image@$digest"
    done
done
