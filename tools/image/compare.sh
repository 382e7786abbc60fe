#!/bin/sh
# Compares what `make image` made in two places, byte by byte; where they differ, it says in what, and fails.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 FOLDER OTHER-FOLDER" >&2; exit 2; }
first=$(cd "$1" && pwd) second=$(cd "$2" && pwd)

differs=''
for file in consul-lock sbom.cdx.json consul-lock.tar; do
    if [ "$file" = sbom.cdx.json ] && [ ! -e "$first/$file" ] && [ ! -e "$second/$file" ]; then
        echo "compare: $file: neither has one, for want of cargo-cyclonedx"
    elif cmp -s "$first/$file" "$second/$file"; then
        echo "compare: $file: the same bytes, sha256 $(sha256sum <"$first/$file" | cut -d ' ' -f 1)"
    else
        echo "compare: $file: DIFFERS"
        differs=yes
    fi
done
[ -n "$differs" ] || exit 0

# Where: in which files of the images, of what owner, mode and time, and in which of their texts.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
look_into() { # FOLDER NAME
    mkdir -p "$scratch/$2/archive" "$scratch/$2/root"
    tar -xf "$1/consul-lock.tar" -C "$scratch/$2/archive"
    for layer in "$scratch/$2"/archive/blobs/sha256/*; do
        if gzip -t "$layer" 2>/dev/null; then
            tar -tvzf "$layer" --full-time --numeric-owner >"$scratch/$2/files"
            tar -xzf "$layer" -C "$scratch/$2/root"
        fi
    done
    strings -n 8 "$1/consul-lock" >"$scratch/$2/strings"
}
look_into "$first" first
look_into "$second" second
cd "$scratch"
diff --brief --recursive first/root second/root || true
for what in files root/usr/share/doc/consul-lock/sbom.cdx.json strings; do
    diff --unified=0 --new-file "first/$what" "second/$what" | cut -c 1-160 | head -n 20
done
exit 1
