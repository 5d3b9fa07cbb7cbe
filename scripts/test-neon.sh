#!/usr/bin/env bash
# Tests the NEON kernels without an Arm CPU: compiles the crate's tests for AArch64 and runs them
# under qemu's user-mode emulation.
#
# Needs Rust's standard library for AArch64, an AArch64 gcc to link with, and qemu-aarch64. The
# script downloads missing ones without root rights: the standard library with rustup, or a whole
# compiler with apt; gcc and qemu with apt. Packages are unpacked under target/neon-tools, not
# installed. Tests are linked statically, because threads of dynamically linked programs hang under
# some versions of qemu.
#
# Arguments are passed to `cargo test`. The default is `--lib --tests`, all tests but those in the
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

# apt with its lists in target/neon-tools: any user can update them, and they have AArch64 packages.
own_apt() {
    local command=$1 host
    shift
    host=$(dpkg --print-architecture)
    "$command" -o Dir::State::lists="$tools/apt/lists" -o Dir::Cache="$tools/apt/cache" \
        -o APT::Architecture="$host" -o APT::Architectures::="$host" \
        -o APT::Architectures::=arm64 "$@"
}

# fetch PACKAGE... : downloads and unpacks packages, with their dependencies that are not installed.
fetch() {
    local package wanted=()
    command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
        missing "absent: $*, and no apt to download them; install them and run this again"
    echo "test-neon: fetching $* into ${tools#"$PWD"/}"
    mkdir -p "$tools"/apt/{lists/partial,cache/archives/partial,debs} "$root"
    own_apt apt-get update -qq || missing "absent: $*, and apt-get reaches no archive"
    # Dependencies for AArch64 are skipped, except those named: no AArch64 program is run natively.
    for package in $(own_apt apt-cache depends --recurse --no-recommends --no-suggests \
        --no-conflicts --no-breaks --no-replaces --no-enhances "$@" |
        grep -E '^[a-z0-9]' | grep -v ':arm64$' | sort -u) \
        $(printf '%s\n' "$@" | grep ':arm64$'); do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            wanted+=("$package")
    done
    (cd "$tools/apt/debs" && own_apt apt-get download -qq "${wanted[@]}" 2>"$tools/apt/log") ||
        missing "cannot download ${wanted[*]}: $(cat "$tools/apt/log")"
    for package in "$tools"/apt/debs/*.deb; do
        dpkg -x "$package" "$root"
    done
    rm -r "$tools/apt"
}

# unpacked NAME : prints the path of an unpacked program, wrapped to find its unpacked libraries.
unpacked() {
    [ -x "$root/usr/bin/$1" ] || return 1
    mkdir -p "$tools/bin"
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' \
        "$libraries" "$root/usr/bin/$1" >"$tools/bin/$1"
    chmod +x "$tools/bin/$1"
    echo "$tools/bin/$1"
}

# find_tool NAME... : prints the path of the first one that is on the PATH or unpacked.
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
if ! has_std "$rustc" &&
    ! { command -v rustup >/dev/null && rustup target add $target && has_std "$rustc"; }; then
    # Debian's newest compiler; the installed one stays as it is.
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
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static -D warnings"
export CC_aarch64_unknown_linux_gnu=$gcc
# For tests that start child processes.
export FATNN_TEST_RUNNER=$qemu
exec cargo test -p fatnn --target $target "$@"
