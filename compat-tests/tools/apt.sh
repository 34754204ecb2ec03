#!/usr/bin/env bash
# apt.sh PACKAGE…: installs Debian packages, or says what is missing where there is no apt.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

if ! command -v apt-get >/dev/null; then
    die "please install what these Debian packages hold, by your system's own means: $*"
fi
root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "neither root nor sudo here; have root run: apt-get install $*"
    root=(sudo)
fi
say "installing $*"
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
