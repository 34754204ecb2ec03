#!/usr/bin/env bash
# Makes $TARGET/peers/nginx, the proxy that tests and benchmark compare with. Where no nginx is installed, Debian's package
# is unpacked there and not installed, since installing it would start a server on port 80. Says so and exits 0 if it cannot.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

peers=$TARGET/peers
nginx=$peers/nginx
mkdir -p "$peers"
if [ -x "$nginx" ] && "$nginx" -v 2>/dev/null; then
    exit 0
fi
installed=$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v nginx || true)
if [ -z "$installed" ] && command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    if [ "$(id -u)" -eq 0 ]; then
        apt-get update -qq || true
    fi
    # Some releases split the binary (`nginx`) from its flavours, older ones put it into the flavour.
    for package in nginx nginx-light; do
        rm -rf "${work:?}"/* "$peers/nginx-root"
        (cd "$work" && apt-get download -qq "$package" >/dev/null 2>&1) || continue
        dpkg-deb -x "$work"/*.deb "$peers/nginx-root"
        if [ -x "$peers/nginx-root/usr/sbin/nginx" ] && "$peers/nginx-root/usr/sbin/nginx" -v 2>/dev/null; then
            installed=$peers/nginx-root/usr/sbin/nginx
            break
        fi
    done
fi
if [ -z "$installed" ]; then
    say "nginx is not to be had here; what compares with it is skipped"
    exit 0
fi
ln -sfn "$installed" "$nginx"
