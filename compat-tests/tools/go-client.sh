#!/usr/bin/env bash
# go-client.sh PROGRAM: builds compat-tests/clients/go, which calls us with Ollama's own Go package. It is built without
# cgo and without fetching another Go; go.sum has the hashes.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

cd "$ROOT/compat-tests/clients/go"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS='-mod=readonly -buildvcs=false -trimpath'
exec go build -o "$1" .
