#!/usr/bin/env bash
# Provides $TARGET/peers/nginx, the proxy that tests and benchmarks compare with. If nginx is not installed, Debian's package
# is unpacked but not installed, because an installation would start a server on port 80. Exits with 0 if there is no nginx.
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
    # Newer releases have the binary in the package nginx, older ones in its flavors.
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
    say "nginx is not available; comparisons with it are skipped"
    exit 0
fi
ln -sfn "$installed" "$nginx"
