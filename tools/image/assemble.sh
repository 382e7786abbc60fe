#!/bin/sh
# Puts together the file system of the image: the binary, its SBOM if there is one beside it, the C
# library that it was linked with, and what that needs to look names up. The Dockerfile and `make
# image` both call it, so that they make the same image.
#
# The C library is the one of the machine that builds, linked dynamically: a static glibc looks names
# up with modules that it does not find in an image. musl would not need them, but Rust's library
# for it is in no package of Debian's. For a machine of another kind (TRIPLE, as in build.sh) it is
# what apt would install there; the one of the cross compiler gets no security updates.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 BINARY NEW-FOLDER" >&2; exit 2; }
export LC_ALL=C # files in one order
binary=$1 root=$2

fail() { echo "$0: $1" >&2; exit 1; }

certificates=/usr/share/ca-certificates/mozilla
[ -d "$certificates" ] || fail "no $certificates (Debian: apt install ca-certificates)"

strip=strip packages="libc6 libgcc-s1" other='' debian=''
if [ -n "${TRIPLE:-}" ] && [ "${TRIPLE%%-*}" != "$(uname -m)" ]; then
    other=$(echo "$TRIPLE" | sed 's/-unknown//') # as Debian has it
    strip=$other-strip
fi
command -v "$strip" >/dev/null || fail "$strip is missing (Debian: apt install binutils${other:+-$other})"

# Since 2.34 the C library looks names up by itself; before, a module did, which is not copied.
libc=$(getconf GNU_LIBC_VERSION) || fail "the C library of this machine is not glibc"
echo "$libc" | awk '{ split($2, v, "."); exit !(v[1] > 2 || v[2] >= 34) }' ||
    fail "$libc is too old: the image needs 2.34 or later"

# Puts the packages of another kind of machine into $debian, and what is in them into $debian/root. apt
# sees to it that they are Debian's; nothing that is installed here changes.
fetch_packages() {
    kind=$(echo "${TRIPLE%%-*}" | sed 's/aarch64/arm64/; s/x86_64/amd64/')
    mkdir -p "$debian/lists/partial" "$debian/archives/partial"
    : >"$debian/status"
    for step in update "download $packages"; do
        # shellcheck disable=SC2086 # words
        (cd "$debian" && apt-get -qq -o APT::Architecture="$kind" -o APT::Architectures="$kind" \
            -o APT::Sandbox::User=root -o Dir::State="$debian" -o Dir::Cache="$debian" \
            -o Dir::State::status="$debian/status" $step) || fail "apt-get $step: failed, for $kind"
    done
    for package in $packages; do
        mv "$debian/${package}"_*.deb "$debian/$package.deb"
        dpkg-deb --extract "$debian/$package.deb" "$debian/root"
    done
}

mkdir -p "$(dirname "$root")"
mkdir "$root"
put() { install -D -m "$1" "$2" "$root/$3"; }

put 755 "$binary" consul-lock
"$strip" --strip-all "$root/consul-lock"

# Libraries, and the program that loads them, go where they are here, or would be.
if [ -n "$other" ]; then
    debian=$(mktemp -d)
    trap 'rm -rf "$debian"' EXIT
    fetch_packages
    loader=$(readelf --program-headers "$binary" | sed -n 's/.*interpreter: \(.*\)\]/\1/p')
    put 755 "$debian/root/lib/$other/$(basename "$loader")" "$loader"
    for library in $(readelf --dynamic "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
        [ "$library" = "$(basename "$loader")" ] ||
            put 755 "$debian/root/lib/$other/$library" "lib/$other/$library"
    done
else
    needed=$(ldd "$binary") || fail "ldd $binary: $needed"
    case $needed in *"not found"*) fail "$binary needs what is not here: $needed" ;; esac
    for library in $(echo "$needed" | tr -s ' \t' '\n\n' | grep '^/'); do
        put 755 "$library" "$library"
    done
fi

# The authorities of Debian's package, and none that were added on this machine.
mkdir -p "$root/etc/ssl/certs"
awk 1 "$certificates"/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
chmod 644 "$root/etc/ssl/certs/ca-certificates.crt"
# Names of this file first: without it the C library asks DNS first.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
echo 'consul-lock:x:65532:65532::/:/sbin/nologin' >"$root/etc/passwd"
echo 'consul-lock:x:65532:' >"$root/etc/group"
chmod 644 "$root/etc/nsswitch.conf" "$root/etc/passwd" "$root/etc/group"

# Terms, and which Debian packages these are, as scanners for vulnerabilities look for it.
put 644 LICENSE usr/share/doc/consul-lock/LICENSE
sbom=$(dirname "$binary")/sbom.cdx.json
[ ! -e "$sbom" ] || put 644 "$sbom" usr/share/doc/consul-lock/sbom.cdx.json
if command -v dpkg-query >/dev/null; then
    mkdir -p "$root/var/lib/dpkg/status.d"
    for package in $packages ca-certificates; do
        if [ -e "$debian/$package.deb" ]; then
            told=$(dpkg-deb --field "$debian/$package.deb")
        else
            told=$(dpkg-query --status "$package")
        fi
        # For machines of all kinds the same.
        put 644 "/usr/share/doc/$package/copyright" "usr/share/doc/$package/copyright"
        printf '%s\n' "$told" >"$root/var/lib/dpkg/status.d/$package"
        chmod 644 "$root/var/lib/dpkg/status.d/$package"
    done
fi
