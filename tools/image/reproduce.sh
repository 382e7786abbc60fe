#!/bin/sh
# Makes the image once more and compares: `make reproducible` calls it when `make image` has made the first.
#
# The second has other paths of sources, target and cargo's home, another umask, time zone and language, and
# another time of day. The machine is the same: compilers, C library, kernel.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 FOLDER-OF-THE-FIRST" >&2; exit 2; }
first=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
cargo_home=${CARGO_HOME:-$HOME/.cargo}
elsewhere=$(mktemp -d "${TMPDIR:-/tmp}/reproduce.XXXXXX")
trap 'rm -rf "$elsewhere"' EXIT
trap 'exit 130' INT TERM

# The sources as they are here, committed or not; and what cargo has downloaded.
sources=$elsewhere/other/sources
home=$elsewhere/another-home-of-cargo
mkdir -p "$sources" "$home/registry"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory "$sources"
for part in config.toml registry/index registry/cache; do
    [ ! -e "$cargo_home/$part" ] || cp -R "$cargo_home/$part" "$home/$part"
done

echo "reproduce: the same again in $sources"
(
    umask 077
    unset CARGO_TARGET_DIR
    export CARGO_HOME="$home" TZ=Pacific/Kiritimati LC_ALL=C
    cd "$sources"
    make --no-print-directory image TRIPLE="${TRIPLE:-}"
)
tools/image/compare.sh "$first" "$sources/target/image${TRIPLE:+-$TRIPLE}"
