"""Functions and data of the Python scripts. Each script is called as

    python SCRIPT.py HOST CHAT TOOLS EMBEDDER [PULL]

with the names of three models: one for chats, one with tools and reasoning, and one for embeddings. They must exist; the
model PULL is pulled first and deleted at the end. A script prints `ok CHECK` lines and exits non-zero at the first check
that fails.
"""

import argparse
import sys

QUESTION = "Explain in one sentence what gravity is."
MESSAGES = [{"role": "user", "content": QUESTION}]
CITIES = ["Rome", "Oslo", "Bern", "Lima", "Cairo"]

# The model is small: at temperature 0 it repeats the pattern of its history.
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "CITY"}}\n</tool_call>'
TWO_CALLS = CALL + "\n" + CALL.replace("CITY", "London")
THOUGHT = "<think>\nThe user asks about CITY.\n</think>\n\nIt is sunny."

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}

_checks = []


def history(answer):
    """Returns a conversation in which every question has this answer, followed by one more question."""
    messages = []
    for city in CITIES:
        messages.append({"role": "user", "content": f"Weather in {city}?"})
        messages.append({"role": "assistant", "content": answer.replace("CITY", city)})
    return [*messages, {"role": "user", "content": "Weather in Paris?"}]


def is_about_gravity(text):
    return "force" in text or "gravity" in text.lower()


def norm(vector):
    return sum(number * number for number in vector) ** 0.5


def similarity(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True)) / norm(left) / norm(right)


def check(function):
    """Registers a check. Checks run in the order of the script."""
    _checks.append(function)
    return function


def raises(kind, function):
    """Returns the exception that a call raises."""
    try:
        function()
    except kind as error:
        return error
    raise AssertionError("it was not refused")


def main(connect):
    """Runs the checks with the client that `connect` creates for the host."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host", help="base URL, for example http://127.0.0.1:11435")
    parser.add_argument("chat", help="name of a model for chats, with its selector")
    parser.add_argument("tools", help="name of a model with tools and reasoning")
    parser.add_argument("embedder", help="name of a model for embeddings")
    parser.add_argument("pull", nargs="?", help="name of a model that is pulled first and deleted at the end")
    names = parser.parse_args()
    client = connect(names.host)
    for function in _checks:
        try:
            function(client, names)
        except Exception as error:
            sys.exit(f"failed {function.__name__}: {type(error).__name__}: {error}")
        print(f"ok {function.__name__.replace('_', ' ')}", flush=True)
