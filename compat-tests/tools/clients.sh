#!/usr/bin/env bash
# Makes $TARGET/test-deps/venv with the official Python clients, pinned with their hashes, and prints its Python's path.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

requirements=$ROOT/compat-tests/clients/requirements.txt
venv=$TARGET/test-deps/venv
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    say "installing the Python clients that the tests call us with"
    rm -rf "$venv"
    mkdir -p "$(dirname "$venv")"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes --only-binary :all: \
        --requirement "$requirements" >&2 || die "pip could not install compat-tests/clients/requirements.txt"
    # Last, so that a broken installation is made again.
    cp "$requirements" "$venv/requirements.txt"
fi
printf '%s\n' "$venv/bin/python"
