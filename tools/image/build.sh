#!/bin/sh
# Builds the release binary, and the list of what is in it (SBOM). The Dockerfile and `make image` both
# call it, so that they build the same.
#
# The same sources give the same bytes, wherever they, cargo's folders and the toolchain lie: no path
# of this machine goes into the binary.
#
# TRIPLE, if it is set, is the kind of machine that it is for, as Rust calls it.
#
# What the binary was made of is in it if cargo-auditable is there, and in the SBOM if
# cargo-cyclonedx is. The Dockerfile installs both; elsewhere it is said what is left out.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
src=$(cd "$(dirname "$0")/../.." && pwd)
cd "$src"
target=${CARGO_TARGET_DIR:-$src/target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
sysroot=$(rustc --print sysroot)
commit=$(rustc -vV | sed -n 's/^commit-hash: //p')
: "${SOURCE_DATE_EPOCH:=0}" # for the SBOM
export SOURCE_DATE_EPOCH

# Of two that fit, the last counts. Paths in the standard library look like this where its sources
# are not installed.
flags=
for remap in "$src=/src" "$target=/target" "$cargo_home=/cargo" \
    "$sysroot/lib/rustlib/src/rust=/rustc/$commit"; do
    flags="$flags${flags:+$(printf '\037')}--remap-path-prefix=$remap"
done
unset RUSTFLAGS
# For machines of another kind, such as TRIPLE=aarch64-unknown-linux-gnu: by Debian's cross compiler.
if [ -n "${TRIPLE:-}" ] && [ "${TRIPLE%%-*}" != "$(uname -m)" ]; then
    linker=CARGO_TARGET_$(echo "$TRIPLE" | tr 'a-z-' 'A-Z_')_LINKER
    export "$linker=$(echo "$TRIPLE" | sed 's/-unknown//')-gcc"
fi
export CARGO_TARGET_DIR="$target" CARGO_ENCODED_RUSTFLAGS="$flags" CARGO_INCREMENTAL=0

auditable=
if command -v cargo-auditable >/dev/null; then
    # Cargo makes the path of what wraps rustc a part of what it calls our crates, and so of the bytes.
    # cargo-auditable names its own place, another on every machine; what it calls puts its name there.
    auditable="env CARGO=env cargo-auditable auditable --unset=CARGO
        RUSTC_WORKSPACE_WRAPPER=cargo-auditable"
else
    echo "LEFT OUT: the binary does not say what it is made of, for want of cargo-auditable:" \
        "cargo install --locked cargo-auditable" >&2
fi
# shellcheck disable=SC2086 # words, or none
$auditable cargo build --release --locked --package consul-lock ${TRIPLE:+--target "$TRIPLE"}
cp "$target/${TRIPLE:+$TRIPLE/}release/consul-lock" "$out/consul-lock"

rm -f "$out/sbom.cdx.json"
if command -v cargo-cyclonedx >/dev/null; then
    triple=${TRIPLE:-$(rustc -vV | sed -n 's/^host: //p')}
    cargo cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps --target "$triple" \
        --override-filename sbom.cdx
    # Where the sources lie is nobody's business.
    sed "s|$src|/src|g" sbom.cdx.json >"$out/sbom.cdx.json"
    rm -f sbom.cdx.json testbed/sbom.cdx.json
else
    echo "LEFT OUT: the SBOM, for want of cargo-cyclonedx:" \
        "cargo install --locked cargo-cyclonedx" >&2
fi
