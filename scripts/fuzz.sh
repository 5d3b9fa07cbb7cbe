#!/usr/bin/env bash
# Fuzzes the readers of graphs and files, for SECONDS each (default 10): fuzz.sh [SECONDS|sample].
# Starts from the golden files and the inputs of earlier runs. "sample" runs the same 100,000 inputs
# every time. The stable compiler is enough, because the coverage flags are passed to it directly;
# `cargo fuzz` works too.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-10}
if ! command -v c++ >/dev/null; then
    echo "fuzz: skipped, libFuzzer needs a C++ compiler (Debian, Ubuntu: apt-get install g++)"
    exit 0
fi
host=$(rustc -vV | awk '/^host:/ {print $2}')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage+=" -Cllvm-args=-sanitizer-coverage-pc-table"
RUSTC_BOOTSTRAP=1 RUSTFLAGS="$coverage --cfg fuzzing -Ccodegen-units=1" \
    cargo build --quiet --release --manifest-path fuzz/Cargo.toml --target "$host" \
    --target-dir target/fuzz
for target in graph file; do
    corpus=target/fuzz/corpus/$target
    limit="-max_total_time=$seconds"
    if [ "$seconds" = sample ]; then
        corpus=target/fuzz/sample/$target limit="-runs=100000 -seed=1"
        rm -rf "$corpus"
    fi
    mkdir -p "$corpus" "target/fuzz/artifacts"
    seeds=rust/fatnn/tests/golden
    if [ "$target" = graph ]; then seeds=fuzz/seeds/graph; fi
    cp "$seeds"/* "$corpus"
    echo "==> fuzzing $target ($limit)"
    "target/fuzz/$host/release/$target" "$corpus" $limit -max_len=65536 -timeout=20 \
        -rss_limit_mb=4096 -artifact_prefix=target/fuzz/artifacts/ \
        >"target/fuzz/$target.log" 2>&1 || {
        tail -n 60 "target/fuzz/$target.log"
        exit 1
    }
    grep -a "^Done" "target/fuzz/$target.log" || true
done
