"""What the Python scripts share. Each is called as

    python SCRIPT.py HOST CHAT TOOLS EMBEDDER [PULL]

with names of models that are there already: one that chats, one that has tools and thinks, one that embeds; PULL is pulled
first and deleted at the end. A script prints `ok CHECK` lines and exits non-zero at the first check that fails.
"""

import argparse
import sys

QUESTION = "Explain in one sentence what gravity is."
MESSAGES = [{"role": "user", "content": QUESTION}]
CITIES = ["Rome", "Oslo", "Bern", "Lima", "Cairo"]

# The model is small: at temperature 0 it does once more what its history repeats.
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "CITY"}}\n</tool_call>'
TWO_CALLS = CALL + "\n" + CALL.replace("CITY", "London")
THOUGHT = "<think>\nThe user asks about CITY.\n</think>\n\nIt is sunny."

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}

_checks = []


def history(answer):
    """A conversation in which every question got this answer, with one more question at its end."""
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
    """Adds a check; they run in the order of the script."""
    _checks.append(function)
    return function


def raises(kind, function):
    """The error that a call is refused with."""
    try:
        function()
    except kind as error:
        return error
    raise AssertionError("it was not refused")


def main(connect):
    """Runs the checks with what `connect` makes of the arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host", help="as http://127.0.0.1:11435")
    parser.add_argument("chat", help="a model's name as it is listed, with its selector")
    parser.add_argument("tools", help="a model that has tools and thinks")
    parser.add_argument("embedder", help="a model that embeds")
    parser.add_argument("pull", nargs="?", help="pull this first and delete it at the end")
    names = parser.parse_args()
    client = connect(names.host)
    for function in _checks:
        try:
            function(client, names)
        except Exception as error:
            sys.exit(f"failed {function.__name__}: {type(error).__name__}: {error}")
        print(f"ok {function.__name__.replace('_', ' ')}", flush=True)
