#!/usr/bin/env bash
# Compiles the crate's tests for AArch64 and runs them under qemu's user-mode emulation: the NEON
# kernels without an Arm.
#
# Needs Rust's standard library for AArch64, an AArch64 gcc to link with, and qemu-aarch64. What is
# absent is fetched, as any user: the standard library by rustup, or else a whole compiler by apt;
# gcc and qemu by apt. Nothing is installed: packages are downloaded and unpacked under
# target/neon-tools. Tests are linked statically, for threads of dynamically linked ones hang under
# some versions of qemu.
#
# Arguments go to `cargo test`, by default `--lib --tests`: all tests of the crate, not those in its
# documentation.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --lib --tests

if [ "$(uname -m)" = aarch64 ]; then
    exec cargo test -p fatnn "$@"
fi

target=aarch64-unknown-linux-gnu
tools=$PWD/target/neon-tools
root=$tools/root
libraries=$root/usr/lib/$(uname -m)-linux-gnu

missing() {
    echo "test-neon: $1" >&2
    exit 1
}

# An apt of our own: its lists, which any user may update, know packages for AArch64 too.
own_apt() {
    local command=$1 host
    shift
    host=$(dpkg --print-architecture)
    "$command" -o Dir::State::lists="$tools/apt/lists" -o Dir::Cache="$tools/apt/cache" -o APT::Architecture="$host" \
        -o APT::Architectures::="$host" -o APT::Architectures::=arm64 "$@"
}

# fetch PACKAGE... : unpacks packages, and what they depend on as far as it is not installed on this
# machine.
fetch() {
    local package wanted=()
    command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
        missing "absent: $*, and there is no apt to get them with; install them and run this again"
    echo "test-neon: fetching $* into ${tools#"$PWD"/}"
    mkdir -p "$tools"/apt/{lists/partial,cache/archives/partial,debs} "$root"
    own_apt apt-get update -qq || missing "absent: $*, and apt-get reaches no archive"
    # Without those for AArch64 itself, except the ones asked for: nothing is run on it.
    for package in $(own_apt apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "$@" | grep -E '^[a-z0-9]' | grep -v ':arm64$' | sort -u) \
        $(printf '%s\n' "$@" | grep ':arm64$'); do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || wanted+=("$package")
    done
    (cd "$tools/apt/debs" && own_apt apt-get download -qq "${wanted[@]}" 2>"$tools/apt/log") ||
        missing "cannot download ${wanted[*]}: $(cat "$tools/apt/log")"
    for package in "$tools"/apt/debs/*.deb; do
        dpkg -x "$package" "$root"
    done
    rm -r "$tools/apt"
}

# unpacked NAME : a program that was unpacked, with the libraries that came with it.
unpacked() {
    [ -x "$root/usr/bin/$1" ] || return 1
    mkdir -p "$tools/bin"
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$libraries" "$root/usr/bin/$1" >"$tools/bin/$1"
    chmod +x "$tools/bin/$1"
    echo "$tools/bin/$1"
}

# find_tool NAME... : the first that is on the PATH or unpacked.
find_tool() {
    local name
    for name in "$@"; do
        command -v "$name" || unpacked "$name" && return
    done
    return 1
}

has_std() {
    ls "$("$1" --print target-libdir --target $target 2>/dev/null)"/libstd-*.rlib >/dev/null 2>&1
}

rustc=${RUSTC:-rustc}
if ! has_std "$rustc" && ! { command -v rustup >/dev/null && rustup target add $target && has_std "$rustc"; }; then
    # Debian's newest compiler, beside whatever compiler there is.
    [ -x "$root/usr/bin/rustc" ] || fetch rustc-web libstd-rust-web-dev:arm64
    rustc=$(unpacked rustc) && has_std "$rustc" ||
        missing "absent: Rust's standard library for $target, and neither rustup nor apt can get it"
fi
find_tool aarch64-linux-gnu-gcc >/dev/null ||
    fetch gcc-aarch64-linux-gnu libc6-dev-arm64-cross linux-libc-dev-arm64-cross
find_tool qemu-aarch64-static qemu-aarch64 >/dev/null || fetch qemu-user
gcc=$(find_tool aarch64-linux-gnu-gcc) || missing "absent: aarch64-linux-gnu-gcc"
qemu=$(find_tool qemu-aarch64-static qemu-aarch64) || missing "absent: qemu-aarch64"

export RUSTC=$rustc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$qemu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"
export CC_aarch64_unknown_linux_gnu=$gcc
# For tests that start processes of their own.
export FATNN_TEST_RUNNER=$qemu
exec cargo test -p fatnn --target $target "$@"
