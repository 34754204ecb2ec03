#!/usr/bin/env bash
# Checks the units in systemd/ with systemd-analyze, if it is installed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

if ! command -v systemd-analyze >/dev/null; then
    say "systemd-analyze is not installed; the units are not checked"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$ROOT"/systemd/* "$work/"
# The verifier requires that the program exists, so the units point to the one that was just built.
sed -i -E "s#^(Exec[A-Za-z]*=[-+!@:|]*)/[^ ]*/hubllama#\1$TARGET/release/hubllama#" "$work"/*.service
systemd-analyze verify --man=no "$work"/*.service
say "systemd units: ok"
