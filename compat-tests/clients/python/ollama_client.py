"""Calls a daemon with Ollama's official Python package."""

import asyncio
import typing

import ollama
import pydantic
from checks import CALL, MESSAGES, THOUGHT, check, history, is_about_gravity, main, norm, raises, similarity

OPTIONS = {"temperature": 0, "seed": 1, "num_predict": 40}
ALIAS, COPY = "compat-pirate", "compat-parrot"


def listed(client):
    return {entry.model: entry for entry in client.list().models}


# The package reads the progress of each layer (traps 58, 59).
@check
def pull(client, names):
    frames = list(client.pull(names.pull, stream=True))
    assert frames[0].status == "pulling manifest" and frames[-1].status == "success", frames
    assert any(frame.digest and frame.total and frame.completed == frame.total for frame in frames), frames
    assert names.pull in listed(client), f"{names.pull} is not listed"


# A digest has 64 hex digits and no prefix (trap 13).
@check
def list_models(client, names):
    entry = listed(client)[names.chat]
    assert len(entry.digest) == 64 and entry.size > 0, entry
    assert entry.details.format == "gguf" and entry.details.family, entry.details


# Open WebUI reads capabilities and model_info (traps 15, 16).
@check
def show(client, names):
    shown = client.show(names.chat)
    assert "completion" in shown.capabilities and "tools" not in shown.capabilities, shown.capabilities
    assert shown.details.quantization_level, shown.details
    assert shown.modelinfo["general.architecture"] == "llama", shown.modelinfo
    assert {"tools", "thinking"} <= set(client.show(names.tools).capabilities)
    assert client.show(names.embedder).capabilities == ["embedding"]


# Token rates are computed from counts and durations of the last frame (traps 10, 11).
@check
def chat(client, names):
    reply = client.chat(names.chat, MESSAGES, options=OPTIONS)
    assert reply.done and reply.done_reason in ("stop", "length"), reply
    assert reply.message.role == "assistant" and is_about_gravity(reply.message.content), reply
    assert reply.prompt_eval_count > 0 and 0 < reply.eval_count <= 40, reply
    assert reply.total_duration >= reply.eval_duration > 0, reply


@check
def chat_streamed(client, names):
    frames = list(client.chat(names.chat, MESSAGES, options=OPTIONS, stream=True))
    assert len(frames) > 2 and frames[-1].done and not any(frame.done for frame in frames[:-1]), frames
    streamed = "".join(frame.message.content or "" for frame in frames)
    assert is_about_gravity(streamed), streamed


@check
def generate(client, names):
    reply = client.generate(names.chat, "Gravity is", raw=True, options=OPTIONS)
    assert reply.done and reply.response.strip() and not reply.context, reply
    frames = list(client.generate(names.chat, "Say hello.", options=OPTIONS, stream=True))
    assert frames[-1].done and frames[-1].context, frames[-1]
    assert "".join(frame.response for frame in frames).strip(), frames


@check
def token_limit(client, names):
    reply = client.chat(names.chat, MESSAGES, options=OPTIONS | {"num_predict": 3})
    assert reply.eval_count == 3 and reply.done_reason == "length", reply


@check
def async_client(client, names):
    async def both():
        # Two at once, one of them streamed.
        other = ollama.AsyncClient(host=names.host, timeout=300, trust_env=False)
        whole = asyncio.create_task(other.chat(names.chat, MESSAGES, options=OPTIONS))
        stream = await other.chat(names.chat, MESSAGES, options=OPTIONS, stream=True)
        streamed = [frame.message.content async for frame in stream]
        return (await whole).message.content, "".join(streamed)

    assert all(map(is_about_gravity, asyncio.run(both())))


# The package calls the function with the arguments as keywords (traps 7, 9).
@check
def tools_from_function(client, names):
    def get_weather(city: str) -> str:
        """Weather of a city

        Args:
            city: its name
        """
        return f"It is sunny in {city}."

    messages = history(CALL)
    reply = client.chat(names.tools, messages, tools=[get_weather], options=OPTIONS)
    call = reply.message.tool_calls[0].function
    assert call.name == "get_weather" and call.arguments == {"city": "Paris"}, reply
    assert reply.done_reason == "stop" and "<tool_call>" not in (reply.message.content or ""), reply
    result = {"role": "tool", "tool_name": call.name, "content": get_weather(**call.arguments)}
    answered = client.chat(names.tools, [*messages, reply.message, result], options=OPTIONS)
    assert answered.done, answered


@check
def structured_output(client, names):
    class Answer(pydantic.BaseModel):
        mood: typing.Literal["good", "bad"]
        stars: int = pydantic.Field(ge=1, le=5)

    question = [{"role": "user", "content": "Was the film good? Answer in JSON."}]
    reply = client.chat(names.chat, question, format=Answer.model_json_schema(), options=OPTIONS)
    answer = Answer.model_validate_json(reply.message.content)
    assert 1 <= answer.stars <= 5, reply


# Reasoning must not appear in the content (trap 43).
@check
def thinking(client, names):
    reply = client.chat(names.tools, history(THOUGHT), think=True, options=OPTIONS)
    assert "Paris" in reply.message.thinking and "<think>" not in reply.message.content, reply
    assert "sunny" in reply.message.content, reply


# Clients learn from the error that a model does not think (trap 44).
@check
def thinking_refused_without_support(client, names):
    error = raises(ollama.ResponseError, lambda: client.chat(names.chat, MESSAGES, think=True))
    assert error.status_code == 400 and "does not support thinking" in error.error, error


# Vector stores expect unit vectors, one for each text (traps 46, 47).
@check
def embed(client, names):
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Stock markets fell on Monday."]
    reply = client.embed(names.embedder, texts)
    cat, kitten, stocks = reply.embeddings
    assert len(cat) == 384 and all(abs(norm(vector) - 1) < 1e-3 for vector in reply.embeddings), norm(cat)
    assert similarity(cat, kitten) > similarity(cat, stocks) + 0.2, "related texts are not closer"
    one = client.embed(names.embedder, texts[0], dimensions=64).embeddings
    assert len(one) == 1 and len(one[0]) == 64 and abs(norm(one[0]) - 1) < 1e-3, len(one)
    old = client.embeddings(names.embedder, texts[0]).embedding
    assert similarity(old, cat) > 0.999, similarity(old, cat)


# The package parses the expiry and the sizes of loaded models (traps 53, 54, 55).
@check
def loaded_models(client, names):
    client.generate(names.chat, "", keep_alive="5m")
    entry = next((entry for entry in client.ps().models if entry.model == names.chat), None)
    assert entry is not None, f"{names.chat} is not resident"
    assert entry.size >= entry.size_vram and entry.size > 0 and entry.context_length > 0, entry
    assert 2000 < entry.expires_at.year < 9999, entry


# An empty prompt loads or unloads the model (traps 21, 22).
@check
def unload(client, names):
    reply = client.generate(names.chat, "", keep_alive=0)
    assert reply.done_reason == "unload", reply
    assert names.chat not in [entry.model for entry in client.ps().models], "still resident"


# The package reads `error` from the body, and clients look for "not found" (traps 6, 19, 20).
@check
def not_found(client, _names):
    error = raises(ollama.ResponseError, lambda: client.chat("hf:nobody/nothing-GGUF:Q4_0", MESSAGES))
    assert error.status_code == 404 and "not found" in error.error, error


@check
def alias_created_copied_and_deleted(client, names):
    system = "You are a pirate."
    created = client.create(ALIAS, from_=names.chat, system=system, parameters={"temperature": 0, "num_predict": 5})
    assert created.status == "success", created
    shown = client.show(ALIAS)
    assert system in shown.modelfile and "num_predict" in shown.parameters, shown
    reply = client.chat(ALIAS, MESSAGES)
    assert reply.model == ALIAS and 0 < reply.eval_count <= 5, reply
    assert client.copy(ALIAS, COPY).status == "success"
    assert {f"{ALIAS}:latest", f"{COPY}:latest"} <= set(listed(client)), sorted(listed(client))
    for name in (ALIAS, COPY):
        assert client.delete(name).status == "success"
    assert not {f"{ALIAS}:latest", f"{COPY}:latest"} & set(listed(client)), sorted(listed(client))
    assert client.chat(names.chat, MESSAGES, options=OPTIONS).done, "the original went with its alias"


# The package sends a body with DELETE, and reads no body on success (trap 51).
@check
def delete(client, names):
    assert client.delete(names.pull).status == "success"
    assert names.pull not in listed(client), f"{names.pull} is still listed"


main(lambda host: ollama.Client(host=host, timeout=300, trust_env=False))
