"""Calls a daemon with Ollama's official Python package, as any program would.

    python ollama_python.py HOST MODEL [--pull NAME]

MODEL must be there already; NAME is pulled first and deleted at the end. Prints `ok CHECK` lines; exits non-zero at the
first check that fails.
"""

import argparse
import sys

import ollama

OPTIONS = {"temperature": 0, "seed": 1, "num_predict": 40}
MESSAGES = [{"role": "user", "content": "Explain in one sentence what gravity is."}]
CHECKS = []


def is_about_gravity(text):
    return "force" in text or "gravity" in text.lower()


def check(function):
    CHECKS.append(function)
    return function


@check
def listed(client, model):
    entries = {entry.model: entry for entry in client.list().models}
    assert model in entries, f"{model} is not among {sorted(entries)}"
    entry = entries[model]
    assert len(entry.digest) == 64 and entry.size > 0, entry
    assert entry.details.format == "gguf" and entry.details.family, entry.details


@check
def show(client, model):
    shown = client.show(model)
    assert "completion" in shown.capabilities, shown.capabilities
    assert shown.details.quantization_level, shown.details
    assert shown.modelinfo["general.architecture"], "no general.architecture"


@check
def chat(client, model):
    reply = client.chat(model, MESSAGES, options=OPTIONS)
    assert reply.done and reply.done_reason in ("stop", "length"), reply
    assert reply.message.role == "assistant" and is_about_gravity(reply.message.content), reply
    assert reply.prompt_eval_count > 0 and 0 < reply.eval_count <= 40, reply
    assert reply.total_duration >= reply.eval_duration > 0, reply


@check
def chat_streamed(client, model):
    frames = list(client.chat(model, MESSAGES, options=OPTIONS, stream=True))
    assert len(frames) > 2 and frames[-1].done and not any(frame.done for frame in frames[:-1]), frames
    streamed = "".join(frame.message.content or "" for frame in frames)
    assert is_about_gravity(streamed), streamed


@check
def generate(client, model):
    reply = client.generate(model, "Gravity is", raw=True, options=OPTIONS)
    assert reply.done and reply.response.strip(), reply
    frames = list(client.generate(model, "Say hello.", options=OPTIONS, stream=True))
    assert frames[-1].done and "".join(frame.response for frame in frames).strip(), frames


@check
def limit_is_kept(client, model):
    reply = client.chat(model, MESSAGES, options=OPTIONS | {"num_predict": 3})
    assert reply.eval_count == 3 and reply.done_reason == "length", reply


@check
def resident(client, model):
    client.generate(model, "", keep_alive="5m")
    entry = next((entry for entry in client.ps().models if entry.model == model), None)
    assert entry is not None, f"{model} is not resident"
    assert entry.size > 0 and entry.expires_at and entry.context_length > 0, entry


@check
def unloaded(client, model):
    reply = client.generate(model, "", keep_alive=0)
    assert reply.done_reason == "unload", reply
    assert model not in [entry.model for entry in client.ps().models], "still resident"


@check
def not_found(client, _model):
    try:
        client.chat("hf:nobody/nothing-GGUF:Q4_0", MESSAGES)
    except ollama.ResponseError as error:
        assert error.status_code == 404 and error.error, error
    else:
        raise AssertionError("a model that is not there answered")


def pulled(client, name):
    frames = list(client.pull(name, stream=True))
    assert frames[0].status == "pulling manifest" and frames[-1].status == "success", frames
    assert any(frame.digest and frame.total and frame.completed == frame.total for frame in frames), frames
    assert any(same(entry.model, name) for entry in client.list().models), f"{name} is not listed"


def deleted(client, name):
    assert client.delete(name).status == "success"
    assert not any(same(entry.model, name) for entry in client.list().models), f"{name} is still listed"


def same(listed_name, name):
    """Listed names have their selector even where the one asked for has none."""
    listed_name, name = listed_name.lower(), name.lower()
    return listed_name == name or listed_name.startswith(name + ":")


def run(name, function, *args):
    try:
        function(*args)
    except Exception as error:
        sys.exit(f"failed {name}: {type(error).__name__}: {error}")
    print(f"ok {name}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("host", help="as http://127.0.0.1:11435")
    parser.add_argument("model", help="as it is listed, with its selector")
    parser.add_argument("--pull", metavar="NAME", help="pull this first and delete it at the end")
    args = parser.parse_args()
    client = ollama.Client(host=args.host, timeout=300, trust_env=False)
    if args.pull:
        run("pull", pulled, client, args.pull)
    for function in CHECKS:
        run(function.__name__, function, client, args.model)
    if args.pull:
        run("delete", deleted, client, args.pull)


main()
