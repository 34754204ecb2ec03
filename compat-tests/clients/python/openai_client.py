"""Calls a daemon's /v1 with OpenAI's official Python package."""

import json
import typing

import openai
import pydantic
from checks import CALL, FUNCTION, MESSAGES, QUESTION, TOOL, TWO_CALLS, check, history, is_about_gravity, main, norm, raises

SETTINGS = {"temperature": 0, "seed": 1, "max_tokens": 40}


class Answer(pydantic.BaseModel):
    mood: typing.Literal["good", "bad"]
    stars: int = pydantic.Field(ge=1, le=5)


# Ids of models contain slashes (trap 52).
@check
def models(client, names):
    ids = [entry.id for entry in client.models.list()]
    assert {names.chat, names.tools, names.embedder} <= set(ids), ids
    # The package percent-encodes the slash.
    assert client.models.retrieve(names.chat).id == names.chat


@check
def chat(client, names):
    reply = client.chat.completions.create(model=names.chat, messages=MESSAGES, **SETTINGS)
    assert is_about_gravity(reply.choices[0].message.content), reply
    assert reply.choices[0].finish_reason in ("stop", "length"), reply
    usage = reply.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 40, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage


# The usage chunk has no choices and comes before [DONE] (traps 37, 38).
@check
def chat_streamed_with_usage(client, names):
    stream = client.chat.completions.create(
        model=names.chat, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **SETTINGS
    )
    text, reasons, usage = "", [], None
    for chunk in stream:
        assert usage is None, "something came behind the usage"
        usage = chunk.usage
        assert not (usage and chunk.choices), chunk
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert is_about_gravity(text) and len(reasons) == 1, (text, reasons)
    assert usage and usage.completion_tokens > 0, usage


@check
def stop_sequence(client, names):
    reply = client.chat.completions.create(model=names.chat, messages=MESSAGES, stop=["force"], **SETTINGS)
    assert "force" not in reply.choices[0].message.content, reply


@check
def max_completion_tokens(client, names):
    reply = client.chat.completions.create(model=names.chat, messages=MESSAGES, temperature=0, max_completion_tokens=3)
    assert reply.usage.completion_tokens == 3 and reply.choices[0].finish_reason == "length", reply


@check
def several_choices(client, names):
    reply = client.chat.completions.create(model=names.chat, messages=MESSAGES, n=2, max_tokens=8)
    assert [choice.index for choice in reply.choices] == [0, 1], reply
    assert all(choice.message.content for choice in reply.choices), reply


@check
def logprobs(client, names):
    reply = client.chat.completions.create(
        model=names.chat, messages=MESSAGES, logprobs=True, top_logprobs=2, temperature=0, max_tokens=4
    )
    tokens = reply.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == reply.choices[0].message.content, reply
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens), tokens


# Arguments are a string on /v1, and ids are unique (traps 7, 8).
@check
def tools(client, names):
    reply = client.chat.completions.create(
        model=names.tools, messages=history(TWO_CALLS), tools=[TOOL], **SETTINGS | {"max_tokens": 90}
    )
    calls = reply.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "London"], reply
    assert reply.choices[0].finish_reason == "tool_calls", reply
    ids = {call.id for call in calls}
    assert len(ids) == 2 and all(ids), ids


@check
def tools_streamed(client, names):
    with client.chat.completions.stream(
        model=names.tools, messages=history(CALL), tools=[TOOL], **SETTINGS
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}, message
    assert "tool_call" not in (message.content or ""), message


@check
def tool_choice(client, names):
    other = {"type": "function", "function": FUNCTION | {"name": "get_time"}}
    for choice, expected in [
        ("required", {"get_weather", "get_time"}),
        ({"type": "function", "function": {"name": "get_time"}}, {"get_time"}),
    ]:
        reply = client.chat.completions.create(
            model=names.tools, messages=MESSAGES, tools=[TOOL, other], tool_choice=choice, **SETTINGS | {"max_tokens": 120}
        )
        calls = reply.choices[0].message.tool_calls
        assert calls and calls[0].function.name in expected, reply
        assert set(json.loads(calls[0].function.arguments)) == {"city"}, reply
    reply = client.chat.completions.create(
        model=names.tools, messages=history(CALL), tools=[TOOL], tool_choice="none", **SETTINGS
    )
    assert not reply.choices[0].message.tool_calls, reply


@check
def parsed_output(client, names):
    reply = client.chat.completions.parse(
        model=names.chat,
        messages=[{"role": "user", "content": "Was the film good? Answer in JSON."}],
        response_format=Answer,
        **SETTINGS,
    )
    assert 1 <= reply.choices[0].message.parsed.stars <= 5, reply


@check
def completions(client, names):
    reply = client.completions.create(model=names.chat, prompt=QUESTION, **SETTINGS)
    assert reply.object == "text_completion" and is_about_gravity(reply.choices[0].text), reply
    stream = client.completions.create(
        model=names.chat, prompt=QUESTION, stream=True, stream_options={"include_usage": True}, **SETTINGS
    )
    chunks = list(stream)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert is_about_gravity(text) and chunks[-1].usage.completion_tokens > 0, chunks[-1]


@check
def embeddings(client, names):
    texts = ["A cat sits on the mat.", "Stock markets fell on Monday."]
    whole = client.embeddings.create(model=names.embedder, input=texts, encoding_format="float")
    # Without a format, the package requests base64 and decodes it.
    packed = client.embeddings.create(model=names.embedder, input=texts)
    for left, right in zip(whole.data, packed.data, strict=True):
        assert len(left.embedding) == 384 and abs(norm(left.embedding) - 1) < 1e-3, left.index
        assert max(abs(a - b) for a, b in zip(left.embedding, right.embedding, strict=True)) < 1e-5, left.index
    assert [entry.index for entry in whole.data] == [0, 1] and whole.usage.prompt_tokens > 0, whole.usage
    short = client.embeddings.create(model=names.embedder, input=texts[0], dimensions=64)
    assert len(short.data[0].embedding) == 64


@check
def responses(client, names):
    reply = client.responses.create(model=names.chat, input=QUESTION, temperature=0, max_output_tokens=40)
    assert is_about_gravity(reply.output_text) and reply.usage.output_tokens > 0, reply


@check
def responses_streamed(client, names):
    stream = client.responses.create(model=names.chat, input=QUESTION, temperature=0, max_output_tokens=40, stream=True)
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events))), "the numbers have a gap"
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed"), events
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert is_about_gravity(text) and events[-1].response.output_text == text, events[-1]


@check
def responses_with_tools(client, names):
    tool = {"type": "function", **FUNCTION, "strict": False}
    reply = client.responses.create(model=names.tools, input=history(CALL), tools=[tool], temperature=0, max_output_tokens=60)
    (call,) = [item for item in reply.output if item.type == "function_call"]
    assert call.name == "get_weather" and json.loads(call.arguments) == {"city": "Paris"}, reply


@check
def not_found(client, _names):
    name = "hf:nobody/nothing-GGUF:Q4_0"
    error = raises(openai.NotFoundError, lambda: client.chat.completions.create(model=name, messages=MESSAGES))
    assert error.body and "not found" in error.body["message"], error


# The daemon is on this machine, so proxies in the environment are ignored.
main(
    lambda host: openai.OpenAI(
        base_url=f"{host}/v1",
        api_key="unused",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False, timeout=300),
    )
)
