#!/usr/bin/env bash
# go-client.sh PROGRAM: builds compat-tests/clients/go, which uses Ollama's Go package. It is built without cgo and without
# downloading another version of Go; go.sum has the hashes.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

cd "$ROOT/compat-tests/clients/go"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS='-mod=readonly -buildvcs=false -trimpath'
exec go build -o "$1" .
