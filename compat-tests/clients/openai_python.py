"""Calls a daemon's /v1 with OpenAI's official Python package.

    python openai_python.py HOST MODEL

Prints `ok CHECK` lines; exits non-zero at the first check that fails.
"""

import sys

import openai

MESSAGES = [{"role": "user", "content": "Explain in one sentence what gravity is."}]
SETTINGS = {"temperature": 0, "seed": 1, "max_tokens": 40}


def is_about_gravity(text):
    return "force" in text or "gravity" in text.lower()


def models(client, model):
    ids = [entry.id for entry in client.models.list()]
    assert model in ids, f"{model} is not among {ids}"


def chat(client, model):
    reply = client.chat.completions.create(model=model, messages=MESSAGES, **SETTINGS)
    assert is_about_gravity(reply.choices[0].message.content), reply
    assert reply.choices[0].finish_reason in ("stop", "length"), reply
    usage = reply.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 40, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage


def chat_streamed(client, model):
    stream = client.chat.completions.create(
        model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **SETTINGS
    )
    text, reasons, usage = "", [], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert is_about_gravity(text) and len(reasons) == 1, (text, reasons)
    assert usage and usage.completion_tokens > 0, usage


def stop_sequence(client, model):
    reply = client.chat.completions.create(model=model, messages=MESSAGES, stop=["force"], **SETTINGS)
    assert "force" not in reply.choices[0].message.content, reply


def not_found(client, _model):
    try:
        client.chat.completions.create(model="hf:nobody/nothing-GGUF:Q4_0", messages=MESSAGES)
    except openai.NotFoundError as error:
        assert error.body and error.body.get("message"), error
    else:
        raise AssertionError("a model that is not there answered")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    host, model = sys.argv[1:]
    # No proxy of the environment: the daemon is on this machine.
    direct = openai.DefaultHttpxClient(trust_env=False, timeout=300)
    client = openai.OpenAI(base_url=f"{host}/v1", api_key="unused", max_retries=0, http_client=direct)
    for check in (models, chat, chat_streamed, stop_sequence, not_found):
        try:
            check(client, model)
        except Exception as error:
            sys.exit(f"failed {check.__name__}: {type(error).__name__}: {error}")
        print(f"ok {check.__name__}", flush=True)


main()
