"""The unmodified OpenAI client against a running service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.end_to_end.running import Running

pytestmark = pytest.mark.timeout(300)
QUESTION: Any = [{"role": "user", "content": "Solve 2x + 3 = 7"}]
MODEL = "phimoe-tiny"


@pytest.fixture
def client(service: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_chat_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert (answer.choices[0].message.content or "").startswith("x = ")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens >= 4


def test_a_streamed_chat_adds_up_to_the_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=1, seed=5, max_tokens=30
    )
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=1,
        seed=5,
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_prompt_that_was_computed_before_is_reported_and_a_salt_hides_it(client: openai.OpenAI) -> None:
    cached = []
    for salt in ("one", "one", "two"):
        answer = client.completions.create(
            model=MODEL,
            prompt=list(range(300, 340)),
            max_tokens=4,
            temperature=0,
            extra_body={"cache_salt": salt},
        )
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 32, 0]


def test_completions_with_logprobs_echo_and_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["Solve 2x", "1 + 1 ="], max_tokens=4, temperature=0, logprobs=2, echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice, prompt in zip(answer.choices, ("Solve 2x", "1 + 1 ="), strict=True):
        assert choice.text.startswith(prompt)
        logprobs = choice.logprobs
        assert logprobs is not None and logprobs.tokens is not None and logprobs.token_logprobs is not None
        # The end of sequence is a token with a logprob and without text.
        assert "".join(logprobs.tokens).removesuffix("<|end|>") == choice.text
        assert logprobs.token_logprobs[0] is None
        assert all(value is not None and value <= 0 for value in logprobs.token_logprobs[1:])


def test_n_choices_differ_and_the_same_seed_repeats_them(client: openai.OpenAI) -> None:
    def ask() -> list[str]:
        answer = client.completions.create(
            model=MODEL, prompt="Hello", max_tokens=12, n=4, seed=7, temperature=1.5
        )
        return [choice.text for choice in answer.choices]

    first = ask()
    assert first == ask()
    assert len(set(first)) > 1


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stop=["= "])
    assert answer.choices[0].message.content == "x "
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        pytest.param({"model": "other"}, 404, "other", id="unknown-model"),
        pytest.param({"temperature": 9}, 400, "temperature: 9", id="out-of-range"),
        pytest.param({"prompt": ""}, 400, "prompt", id="empty-prompt"),
        pytest.param({"max_tokens": 100000}, 400, "100000", id="beyond-context"),
        pytest.param({"extra_body": {"nonsense": 1}}, 400, "nonsense", id="unknown-field"),
    ],
)
def test_a_wrong_request_names_field_and_value(
    client: openai.OpenAI, change: dict[str, object], status: int, words: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        body = {"model": MODEL, "prompt": "Hello", "max_tokens": 4, **change}
        client.completions.create(**body)  # type: ignore[call-overload]
    assert caught.value.status_code == status
    assert words in caught.value.message
