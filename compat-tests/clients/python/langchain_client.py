"""Calls a daemon through LangChain's Ollama package."""

import typing

import pydantic
from checks import CALL, CITIES, QUESTION, check, is_about_gravity, main, similarity
from langchain_core.messages import AIMessage, HumanMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM


class Answer(pydantic.BaseModel):
    """A judgment."""

    mood: typing.Literal["good", "bad"]
    stars: int = pydantic.Field(ge=1, le=5)


class get_weather(pydantic.BaseModel):
    """Weather of a city"""

    city: str


def chat_model(host, model, **settings):
    settings = {"temperature": 0, "seed": 1, "num_predict": 60, **settings}
    return ChatOllama(model=model, base_url=host, client_kwargs={"trust_env": False, "timeout": 300}, **settings)


def history():
    """Returns the conversation of `checks.history` as LangChain messages."""
    messages = []
    for city in CITIES:
        messages += [HumanMessage(f"Weather in {city}?"), AIMessage(CALL.replace("CITY", city))]
    return [*messages, HumanMessage("Weather in Paris?")]


# LangChain reads counts and done_reason from the last frame (trap 11).
@check
def invoke(host, names):
    reply = chat_model(host, names.chat).invoke(QUESTION)
    assert is_about_gravity(reply.content), reply
    assert reply.response_metadata["done_reason"] in ("stop", "length"), reply
    assert reply.usage_metadata["input_tokens"] > 0 and reply.usage_metadata["output_tokens"] > 0, reply


@check
def stream(host, names):
    pieces = list(chat_model(host, names.chat).stream(QUESTION))
    assert len(pieces) > 3 and is_about_gravity("".join(piece.content for piece in pieces)), pieces


@check
def model_validation(host, names):
    assert chat_model(host, names.chat, validate_model_on_init=True).model == names.chat


@check
def completion(host, names):
    llm = OllamaLLM(model=names.chat, base_url=host, temperature=0, num_predict=40, client_kwargs={"trust_env": False})
    assert is_about_gravity(llm.invoke(QUESTION))


@check
def bind_tools(host, names):
    reply = chat_model(host, names.tools).bind_tools([get_weather]).invoke(history())
    (call,) = reply.tool_calls
    assert call["name"] == "get_weather" and call["args"] == {"city": "Paris"} and call["id"], reply


@check
def structured_output_by_schema(host, names):
    model = chat_model(host, names.chat).with_structured_output(Answer, method="json_schema")
    assert 1 <= model.invoke("Was the film good? Answer in JSON.").stars <= 5


@check
def structured_output_by_tool_call(host, names):
    model = chat_model(host, names.tools).with_structured_output(get_weather, method="function_calling")
    assert model.invoke(history()).city == "Paris"


@check
def embeddings(host, names):
    embedder = OllamaEmbeddings(model=names.embedder, base_url=host, client_kwargs={"trust_env": False})
    cat, stocks = embedder.embed_documents(["A cat sits on the mat.", "Stock markets fell on Monday."])
    kitten = embedder.embed_query("A kitten rests on a rug.")
    assert len(kitten) == 384 and similarity(cat, kitten) > similarity(stocks, kitten) + 0.2


main(lambda host: host)
