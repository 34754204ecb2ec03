"""Calls a daemon's /v1/messages with Anthropic's official Python package."""

import anthropic
from checks import MESSAGES, SCHEMA, THOUGHT, TWO_CALLS, check, history, is_about_gravity, main, raises

TOOL = {"name": "get_weather", "description": "Weather of a city", "input_schema": SCHEMA}
# The package no longer has a temperature; the API does.
SETTINGS = {"extra_body": {"temperature": 0}, "max_tokens": 40}


def blocks(message, kind):
    return [block for block in message.content if block.type == kind]


@check
def message(client, names):
    reply = client.messages.create(model=names.chat, messages=MESSAGES, system="Be brief.", **SETTINGS)
    assert reply.type == "message" and reply.role == "assistant" and reply.model == names.chat, reply
    assert is_about_gravity(reply.content[0].text), reply
    assert reply.stop_reason in ("end_turn", "max_tokens"), reply
    assert reply.usage.input_tokens > 0 and 0 < reply.usage.output_tokens <= 40, reply


@check
def message_streamed(client, names):
    with client.messages.stream(model=names.chat, messages=MESSAGES, **SETTINGS) as stream:
        text = "".join(stream.text_stream)
        reply = stream.get_final_message()
    assert is_about_gravity(text) and reply.content[0].text == text, reply
    assert reply.usage.output_tokens > 0 and reply.stop_reason, reply


# Results of tools are matched to calls by id (trap 8).
@check
def tools(client, names):
    settings = SETTINGS | {"max_tokens": 90}
    request = {"model": names.tools, "messages": history(TWO_CALLS), "tools": [TOOL], **settings}
    with client.messages.stream(**request) as stream:
        streamed = stream.get_final_message()
    for reply in (streamed, client.messages.create(**request)):
        calls = blocks(reply, "tool_use")
        assert [call.input for call in calls] == [{"city": "Paris"}, {"city": "London"}], reply
        assert len({call.id for call in calls}) == 2 and reply.stop_reason == "tool_use", reply


@check
def tool_choice(client, names):
    reply = client.messages.create(
        model=names.tools, messages=MESSAGES, tools=[TOOL], tool_choice={"type": "any"}, **SETTINGS | {"max_tokens": 120}
    )
    (call, *_) = blocks(reply, "tool_use")
    assert call.name == "get_weather" and set(call.input) == {"city"}, reply


# Reasoning has its own block (trap 43).
@check
def thinking(client, names):
    request = {"model": names.tools, "messages": history(THOUGHT), "thinking": {"type": "enabled", "budget_tokens": 1024}}
    with client.messages.stream(**request, **SETTINGS) as stream:
        streamed = stream.get_final_message()
    for reply in (streamed, client.messages.create(**request, **SETTINGS)):
        assert "Paris" in blocks(reply, "thinking")[0].thinking, reply
        assert "sunny" in blocks(reply, "text")[0].text, reply


# Agents enable thinking for every model (trap 44).
@check
def thinking_ignored_without_support(client, names):
    reply = client.messages.create(
        model=names.chat, messages=MESSAGES, thinking={"type": "enabled", "budget_tokens": 1024}, **SETTINGS
    )
    assert not blocks(reply, "thinking") and is_about_gravity(reply.content[0].text), reply


@check
def stop_sequences(client, names):
    reply = client.messages.create(model=names.chat, messages=MESSAGES, stop_sequences=["force"], **SETTINGS)
    assert "force" not in reply.content[0].text and reply.stop_reason in ("end_turn", "stop_sequence"), reply


@check
def count_tokens(client, names):
    counted = client.messages.count_tokens(model=names.chat, messages=MESSAGES).input_tokens
    reply = client.messages.create(model=names.chat, messages=MESSAGES, **SETTINGS)
    assert counted == reply.usage.input_tokens, (counted, reply.usage)


@check
def not_found(client, _names):
    name = "hf:nobody/nothing-GGUF:Q4_0"
    error = raises(anthropic.NotFoundError, lambda: client.messages.create(model=name, messages=MESSAGES, **SETTINGS))
    assert error.body["error"]["type"] == "not_found_error", error


# The daemon is on this machine, so proxies in the environment are ignored.
main(
    lambda host: anthropic.Anthropic(
        base_url=host,
        api_key="unused",
        max_retries=0,
        http_client=anthropic.DefaultHttpxClient(trust_env=False, timeout=300),
    )
)
