#!/usr/bin/env bash
# Installs the official clients that the tests use, pinned by their hashes: Python packages into $TARGET/test-deps/venv,
# JavaScript packages into $TARGET/test-deps/javascript, and Go packages into Go's cache.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

clients=$ROOT/compat-tests/clients
deps=$TARGET/test-deps
mkdir -p "$deps"

requirements=$clients/python/requirements.txt
venv=$deps/venv
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    say "installing the Python clients for the tests"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes --only-binary :all: \
        --requirement "$requirements" >&2 || die "pip could not install compat-tests/clients/python/requirements.txt"
    # This is the last step, so that an incomplete installation is repeated.
    cp "$requirements" "$venv/requirements.txt"
fi

# Only the tests need Node.js, so `make deps` does not install it.
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    "$TOOLS/apt.sh" nodejs npm
fi
javascript=$deps/javascript
if ! cmp -s "$clients/javascript/package-lock.json" "$javascript/installed.json"; then
    say "installing the JavaScript clients for the tests"
    rm -rf "$javascript"
    mkdir -p "$javascript"
    cp "$clients/javascript/package.json" "$clients/javascript/package-lock.json" "$javascript/"
    (cd "$javascript" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) ||
        die "npm could not install compat-tests/clients/javascript/package-lock.json"
    cp "$clients/javascript/package-lock.json" "$javascript/installed.json"
fi

# Go is not installed for the tests, because Debian's version is often older than the module requires.
if command -v go >/dev/null; then
    "$TOOLS/go-client.sh" "$deps/go-client" || say "the Go client could not be built; its test is skipped"
fi
