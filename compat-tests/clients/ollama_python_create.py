"""Makes models of a model with Ollama's official Python package, as any program would.

    python ollama_python_create.py HOST MODEL

Prints `ok CHECK` lines; exits non-zero at the first check that fails.
"""

import sys

import ollama

OPTIONS = {"seed": 1, "num_predict": 12}


def main():
    host, model = sys.argv[1:]
    client = ollama.Client(host=host)

    frames = list(
        client.create(
            model="mario",
            from_=model,
            system="You are Mario.",
            parameters={"temperature": 0},
            messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "it's me"}],
            license="MIT",
            stream=True,
        )
    )
    assert [frame.status for frame in frames][-2:] == ["writing manifest", "success"], frames
    assert client.create(model="child", from_="mario").status == "success"
    print("ok create")

    shown = client.show("mario")
    assert shown.license == "MIT" and "SYSTEM You are Mario." in shown.modelfile, shown
    assert shown.parameters.split() == ["temperature", "0"], shown.parameters
    assert shown.details.parent_model == model, shown.details
    print("ok show")

    question = [{"role": "user", "content": "Who are you?"}]
    reply = client.chat("mario", question, options=OPTIONS)
    spelled_out = [
        {"role": "system", "content": "You are Mario."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "it's me"},
        *question,
    ]
    same = client.chat(model, spelled_out, options={**OPTIONS, "temperature": 0})
    assert reply.message.content == same.message.content, (reply, same)
    assert client.chat("child", question, options=OPTIONS).message.content == same.message.content
    print("ok chat")

    client.copy("mario", "me/luigi:v1")
    names = {entry.model for entry in client.list().models}
    assert {"mario:latest", "child:latest", "me/luigi:v1", model} <= names, names
    print("ok copy")

    for name in ("mario", "child", "me/luigi:v1"):
        client.delete(name)
    names = {entry.model for entry in client.list().models}
    assert names == {model}, names
    print("ok delete")

    try:
        client.push("x", stream=False)
        client.create(model="hf:a/b", from_=model)
    except ollama.ResponseError as error:
        assert error.status_code in (400, 502), error
    else:
        raise AssertionError("nothing was refused")
    print("ok refusals")


main()
