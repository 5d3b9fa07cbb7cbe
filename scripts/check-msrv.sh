#!/usr/bin/env bash
# Checks that the workspace compiles with the oldest Rust that Cargo.toml promises.
# Needs rustup to get that compiler. If that fails, the script says so and checks nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
if ! command -v rustup >/dev/null; then
    echo "SKIPPED: no rustup here, so the workspace was not compiled with Rust $version"
    exit 0
fi
if ! rustup toolchain list | grep -q "^$version" &&
    ! timeout 300 rustup toolchain install "$version" --profile minimal >/dev/null 2>&1; then
    echo "SKIPPED: rustup cannot install Rust $version, so nothing was compiled with it"
    exit 0
fi
export CARGO_TARGET_DIR=target/msrv
cargo "+$version" check --workspace --all-targets --features fatnn/cli --quiet
echo "the workspace compiles with Rust $version"
