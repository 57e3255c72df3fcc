"""What a program that uses openai-python does, against kvwarden. Only the base URL is special."""
import time

import openai

MODEL = "tiny"
SEA = [{"role": "user", "content": "Write one sentence about the sea."}]


def client(tenant, **options):
    return openai.OpenAI(default_headers={"X-Tenant-ID": tenant}, **options)


def text_of(stream):
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def answers(api):
    ids = [model.id for model in api.models.list()]
    assert "org/tiny-model" in ids, ids
    assert api.models.retrieve("org/tiny-model").object == "model"
    chat = api.chat.completions.create(model=MODEL, messages=SEA, max_tokens=12)
    assert chat.choices[0].message.content and chat.usage.completion_tokens <= 12, chat
    raw = api.chat.completions.with_raw_response.create(model=MODEL, messages=SEA, max_tokens=2)
    assert raw.headers["x-request-id"], raw.headers
    completion = api.completions.create(model=MODEL, prompt="The sea", max_tokens=5)
    assert completion.choices[0].text and completion.usage.completion_tokens <= 5, completion
    vectors = api.embeddings.create(model=MODEL, input=["one", "two"]).data
    assert len(vectors) == 2 and len(vectors[0].embedding) > 1, vectors
    assert all(isinstance(x, float) for x in vectors[0].embedding)


def streams(api):
    stream = list(api.chat.completions.create(
        model=MODEL, messages=SEA, max_tokens=12, stream=True))
    assert text_of(stream) and all(chunk.usage is None for chunk in stream), stream
    stream = list(api.chat.completions.create(
        model=MODEL, messages=SEA, max_tokens=12, stream=True,
        stream_options={"include_usage": True}))
    assert text_of(stream) and stream[-1].usage.completion_tokens <= 12, stream
    assert not stream[-1].choices


def errors(api):
    try:
        api.chat.completions.create(model="nope", messages=SEA)
        raise AssertionError("an unknown model was served")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found" and error.param == "model", error.body
        assert "nope" in error.message and error.request_id, error
    for stream in (False, True):
        try:
            api.chat.completions.create(model=MODEL, messages=SEA, temperature=-1, stream=stream)
            raise AssertionError("a temperature of -1 was served")
        except openai.BadRequestError as error:
            assert error.param == "temperature", error.body


def limits():
    # One request a second: the second one is refused and the SDK itself waits and asks again.
    patient = client("limited", max_retries=2)
    patient.chat.completions.create(model=MODEL, messages=SEA, max_tokens=2)
    before = time.monotonic()
    patient.chat.completions.create(model=MODEL, messages=SEA, max_tokens=2)
    waited = time.monotonic() - before
    assert 0.3 < waited < 5, f"waited {waited} s instead of about one"
    try:
        client("limited", max_retries=0).chat.completions.create(
            model=MODEL, messages=SEA, max_tokens=2)
        raise AssertionError("the limit did not hold")
    except openai.RateLimitError as error:
        assert error.code == "rate_limit_exceeded", error.body
        assert int(error.response.headers["retry-after-ms"]) <= 1000


def main():
    api = client("sdk")
    answers(api)
    streams(api)
    errors(api)
    limits()
    print("the session is over")


main()
