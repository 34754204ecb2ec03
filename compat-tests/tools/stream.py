"""Reads the NDJSON frames of a streamed reply from stdin and prints their content as it arrives.

    curl -N … | python3 stream.py chat     the text
    curl -N … | python3 stream.py pull     one line of progress

Exits non-zero when the reply is an error, ends early or is empty.
"""

import json
import sys


def frames():
    for line in iter(sys.stdin.readline, ""):
        if not line.strip():
            continue
        try:
            frame = json.loads(line)
        except ValueError:
            sys.exit(f"\nerror: not a JSON frame: {line.strip()[:200]}")
        if "error" in frame:
            sys.exit(f"\nerror: {frame['error']}")
        yield frame


def chat():
    words, last = 0, {}
    for last in frames():
        text = last.get("message", {}).get("content") or last.get("response") or ""
        words += bool(text.strip())
        print(text, end="", flush=True)
    print()
    if not last.get("done"):
        sys.exit("error: the stream ended early")
    if not words:
        sys.exit("error: the answer is empty")
    if last.get("eval_duration"):
        rate = last.get("eval_count", 0) / (last["eval_duration"] / 1e9)
        print(f"({last.get('eval_count', 0)} tokens, {rate:.0f} tokens/s)", file=sys.stderr)


def pull():
    status = ""
    for frame in frames():
        status = frame.get("status", "")
        done, total = frame.get("completed", 0), frame.get("total", 0)
        progress = f" {done >> 20} of {total >> 20} MiB" if total else ""
        print(f"\r\033[K{status}{progress}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if status != "success":
        sys.exit("error: the pull ended early")


{"chat": chat, "pull": pull}[sys.argv[1]]()
