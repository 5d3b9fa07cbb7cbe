#!/usr/bin/env bash
# Lists the tools that this machine lacks to build fatnn-rs, and how to get them. Prints nothing if
# all are there. PYTHON names the interpreter (default: python3); if it is empty, Python is not
# checked.
set -u
PYTHON=${PYTHON-python3}
missing=0
lacks() {
    printf 'missing: %s\n     why: %s\n  get it: %s\n' "$1" "$2" "$3" >&2
    missing=1
}
version_at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

rust=1.89
if ! command -v cargo >/dev/null ||
    ! found=$(cargo --version 2>/dev/null | awk '{print $2}') || [ -z "$found" ]; then
    lacks "a Rust toolchain (cargo)" "the core is compiled from source" \
        "rustup, from the Rust project, then open a new shell"
elif ! version_at_least "$rust" "$found"; then
    lacks "Rust $rust or later (found $found)" \
        "the core uses AVX-512 intrinsics, stable since that version" "rustup update stable"
fi
if ! command -v cc >/dev/null; then
    lacks "a C toolchain (cc)" "Rust links with it" \
        "Debian, Ubuntu: apt-get install gcc; macOS: xcode-select --install"
fi
if [ -z "$PYTHON" ]; then
    :
elif ! command -v "$PYTHON" >/dev/null; then
    lacks "Python ($PYTHON)" "the package is for Python" \
        "Debian, Ubuntu: apt-get install python3 python3-venv"
elif ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    lacks "Python 3.10 or later (found $("$PYTHON" -V 2>&1))" "the package requires it" \
        "for example: make setup PYTHON=python3.12"
elif ! "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then
    lacks "Python's venv module" "everything is installed into .venv" \
        "Debian, Ubuntu: apt-get install python3-venv"
fi
exit $missing
