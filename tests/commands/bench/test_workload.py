from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.commands.bench.workload import (
    Call,
    RandomCalls,
    Span,
    arrival_seconds,
    fit_lengths,
    parse_span,
    read_dataset,
    repeat_calls,
)


def _random(endpoint: str = "completions", vocab: int = 4001) -> RandomCalls:
    return RandomCalls(
        endpoint=endpoint, prompt_tokens=Span(low=5, high=9), output_tokens=Span(low=2, high=4), vocab=vocab
    )


def test_the_same_seed_makes_the_same_calls_and_another_seed_others() -> None:
    assert _random().make(20, 3) == _random().make(20, 3)
    assert _random().make(20, 3) != _random().make(20, 4)


@pytest.mark.parametrize(
    ("vocab", "low", "high"), [(4001, 300, 4000), (32064, 300, 4000), (512, 300, 511), (64, 1, 63)]
)
def test_random_prompts_stay_inside_lengths_and_vocabulary(vocab: int, low: int, high: int) -> None:
    calls = _random(vocab=vocab).make(300, 1)
    ids = [token for call in calls for token in call.token_ids or ()]
    assert low <= min(ids) and max(ids) <= high
    assert {len(call.token_ids or ()) for call in calls} == {5, 6, 7, 8, 9}
    assert {call.max_tokens for call in calls} == {2, 3, 4}


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_prompts_can_say_the_same_phrase_over_and_over(endpoint: str) -> None:
    calls = RandomCalls(
        endpoint=endpoint,
        prompt_tokens=Span(low=2, high=50),
        output_tokens=Span(low=1, high=1),
        phrase_tokens=7,
    ).make(40, 1)
    phrases = set()
    for call in calls:
        said = call.token_ids or tuple(call.messages[0]["content"].split() if call.messages else ())
        assert said == (said[:7] * 8)[: len(said)]
        phrases.add(said)
    assert len(phrases) == 40, "every prompt has a phrase of its own"


def test_a_phrase_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="phrase_tokens is 0, expected at least 1"):
        RandomCalls(
            endpoint="chat",
            prompt_tokens=Span(low=1, high=1),
            output_tokens=Span(low=1, high=1),
            phrase_tokens=0,
        )


def test_chat_prompts_are_so_many_words_of_one_user_message() -> None:
    for call in _random("chat").make(20, 1):
        assert call.token_ids is None and call.messages is not None
        (message,) = call.messages
        assert message["role"] == "user" and 5 <= len(message["content"].split()) <= 9


def test_arrivals_begin_at_zero_and_have_the_rate_and_spread_of_a_poisson_process() -> None:
    times = list(arrival_seconds(50.0, 4000, seed=5))
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0 and min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert times == list(arrival_seconds(50.0, 4000, seed=5))


@pytest.mark.parametrize(
    ("prompt", "output", "context", "fitted"),
    [
        pytest.param("64", "32", 96, ("64", "32"), id="fits"),
        pytest.param("64", "32", 95, ("63", "32"), id="prompt-shorter"),
        pytest.param("5-900", "32-64", 512, ("5-448", "32-64"), id="span"),
        pytest.param("10", "1000", 512, ("10", "502"), id="output-shorter"),
        pytest.param("1000", "1000", 512, ("256", "256"), id="halves"),
        pytest.param("600-1000", "900", 100, ("50", "50"), id="low-end-too"),
        pytest.param("9", "9", 1, ("1", "1"), id="no-room"),
    ],
)
def test_lengths_are_fitted_to_a_context(
    prompt: str, output: str, context: int, fitted: tuple[str, str]
) -> None:
    spans = fit_lengths(parse_span(prompt), parse_span(output), context)
    assert tuple(map(str, spans)) == fitted


@pytest.mark.parametrize("text", ["", "0", "-3", "4-", "9-5", "x", "1.5"])
def test_a_span_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="token range"):
        parse_span(text)


def test_spans_are_one_number_or_two() -> None:
    assert parse_span("64") == Span(low=64, high=64)
    assert parse_span("32-128") == Span(low=32, high=128)


def test_a_dataset_keeps_its_prompts_and_limits(tmp_path: Path) -> None:
    lines = [{"prompt": "one"}, {"prompt": [1, 2, 3], "max_tokens": 9}]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    calls = read_dataset(path, "completions", Span(low=7, high=7), seed=1)
    assert calls == [Call(max_tokens=7, text="one"), Call(max_tokens=9, token_ids=(1, 2, 3))]
    assert repeat_calls(calls, 3) == [*calls, calls[0]]


def test_a_chat_dataset_takes_messages_and_makes_one_of_a_text(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"prompt": "hello"}) + "\n")
    first, second = read_dataset(path, "chat", Span(low=1, high=1), seed=1)
    assert first.messages == tuple(messages)
    assert second.messages == ({"role": "user", "content": "hello"},)


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"prompt": []}', '{"prompt": [1, "a"]}', '{"prompt": "a", "max_tokens": 0}']
)
def test_a_bad_dataset_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"data\.jsonl, line 2: "):
        read_dataset(path, "completions", Span(low=1, high=1), seed=1)


def test_an_empty_or_missing_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no request"):
        read_dataset(tmp_path / "empty.jsonl", "chat", Span(low=1, high=1), seed=1)
    with pytest.raises(ValueError, match="cannot read dataset"):
        read_dataset(tmp_path / "none.jsonl", "chat", Span(low=1, high=1), seed=1)
