#!/usr/bin/env bash
# apt.sh PACKAGE…: installs Debian packages. Without apt, it lists what is missing and fails.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

if ! command -v apt-get >/dev/null; then
    die "there is no apt here; install the equivalents of these Debian packages: $*"
fi
root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "root or sudo is needed; run as root: apt-get install $*"
    root=(sudo)
fi
say "installing $*"
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
