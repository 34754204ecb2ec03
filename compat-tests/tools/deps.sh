#!/usr/bin/env bash
# Installs what the build, the demo and the tests need in addition to a Rust toolchain. The package manager is not called
# if everything is installed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

missing=()

# need PACKAGE TEST…: adds the package to the missing ones if the test fails.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

# bindgen loads libclang and reads the headers of clang.
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return
    # libclang-cpp is a different library.
    compgen -G '/usr/lib/llvm-*/lib/libclang[-.][0-9s]*' && compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h'
}

has_certificates() {
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || [ -e /etc/ssl/cert.pem ]
}

need cmake command -v cmake
need g++ command -v c++
need make command -v make
need pkg-config command -v pkg-config
need libclang-dev has_libclang
need curl command -v curl
need ca-certificates has_certificates
need python3 command -v python3
need python3-venv python3 -c 'import ensurepip, venv'

command -v cargo >/dev/null || die "cargo is not installed: install Rust 1.95 or newer (https://rustup.rs), then try again"

if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
exec "$TOOLS/apt.sh" "${missing[@]}"
