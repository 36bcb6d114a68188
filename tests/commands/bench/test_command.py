from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.commands.bench import command
from tests.commands.bench.server import Behaviour, serving


def _bench(tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    path = tmp_path / "figures.json"
    status = command.run(parser.parse_args([*flags, "--json", str(path)]))
    return status, json.loads(path.read_text()) if path.exists() else {}


def test_a_closed_loop_measures_the_servers_own_timing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Behaviour(first_seconds=0.10, gap_seconds=0.02)) as server:
        status, content = _bench(
            tmp_path, "--url", server.url, "--concurrency", "4", "--num-requests", "12",
            "--prompt-tokens", "5-9", "--output-tokens", "6", "--warmup", "4",
        )  # fmt: skip
    load = content["rounds"][0][0]["load"]
    assert status == 0 and load["num_errors"] == 0 and load["is_exact"]
    assert load["output_tokens"] == 12 * 6
    assert 0.10 <= load["time_to_first_token_seconds"]["p50"] < 0.6
    assert 0.02 <= load["inter_token_latency_seconds"]["mean"] < 0.12
    assert load["inter_token_latency_seconds"]["count"] == 12 * 5
    assert 0.20 <= load["end_to_end_seconds"]["p50"] < 1.2
    assert server.most_at_once == 4
    assert len(server.num_connections) <= 5, "connections were not used again"
    measured = server.bodies[4:]
    assert len(server.bodies) == 16 and load["prompt_tokens"] == sum(len(body["prompt"]) for body in measured)
    assert all(
        body["ignore_eos"] and body["model"] == "small" and body["max_tokens"] == 6 for body in measured
    )
    shown = capsys.readouterr().out
    assert "output tokens/s" in shown and "inter-token latency" in shown and "p99" in shown


def test_an_open_loop_sends_at_the_arrival_times_whatever_is_under_way(tmp_path: Path) -> None:
    with serving(Behaviour(first_seconds=1.0)) as server:
        status, content = _bench(
            tmp_path, "--url", server.url, "--rate", "40", "--num-requests", "20", "--output-tokens", "1",
            "--warmup", "0",
        )  # fmt: skip
    assert status == 0 and content["rounds"][0][0]["load"]["num_errors"] == 0
    assert server.most_at_once > 10, "sending waited for answers"
    assert server.arrivals[-1] - server.arrivals[0] > 0.1, "all were sent at once"


@pytest.mark.parametrize("tokens_per_chunk", [1, 3])
def test_tokens_are_counted_with_and_without_continuous_usage(tmp_path: Path, tokens_per_chunk: int) -> None:
    for counts in (True, False):
        behaviour = Behaviour(gap_seconds=0.01, tokens_per_chunk=tokens_per_chunk, counts_continuously=counts)
        with serving(behaviour) as server:
            status, content = _bench(
                tmp_path, "--url", server.url, "--num-requests", "2", "--output-tokens", "7"
            )
        load = content["rounds"][0][0]["load"]
        assert status == 0
        assert (load["output_tokens"], load["num_short"], load["is_exact"]) == (14, 0, counts)


def test_failures_are_counted_shown_and_make_the_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = Behaviour(fails=frozenset({0}), breaks=frozenset({1}), reports_error=frozenset({2}))
    with serving(behaviour) as server:
        status, content = _bench(tmp_path, "--url", server.url, "--num-requests", "5", "--warmup", "0")
    load = content["rounds"][0][0]["load"]
    assert status == 1 and load["num_errors"] == 3
    shown = capsys.readouterr().out
    for words in ("made to fail", "without [DONE]", "out of luck"):
        assert sum(words in text for text in load["errors"]) == 1, load["errors"]
        assert words in shown


def test_a_connection_that_the_server_has_closed_meanwhile_is_no_failure(tmp_path: Path) -> None:
    with serving(Behaviour(keep_alive_seconds=0)) as server:
        status, content = _bench(
            tmp_path, "--url", server.url, "--num-requests", "40", "--concurrency", "2",
            "--output-tokens", "2",
            "--warmup", "0",
        )  # fmt: skip
    load = content["rounds"][0][0]["load"]
    assert status == 0 and load["num_errors"] == 0 and load["output_tokens"] == 40 * 2
    assert len(server.bodies) == 40, "a call came twice"


SERVERS = [
    pytest.param(
        Behaviour(
            limits={"max_model_len": 48, "meta": {"n_vocab": 400}}, vocab=400, gap_seconds=0.02, context=48
        ),
        id="this-project",
    ),
    pytest.param(
        Behaviour(
            limits={"meta": {"n_vocab": 400, "n_ctx_train": 4096}},
            props={"default_generation_settings": {"n_ctx": 48}},
            vocab=400,
            gap_seconds=0.02,
            context=48,
        ),
        id="llama.cpp",
    ),
    pytest.param(
        Behaviour(limits={"max_model_len": 48}, vocab=32064, gap_seconds=0.02, context=48), id="vllm"
    ),
]


@pytest.mark.parametrize("behaviour", SERVERS)
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--decode-batch", "1,2", "--repeat", "1"),
        ("--shared-prefix-tokens", "90", "--prompt-tokens", "4"),
    ],
)
def test_ids_and_lengths_are_what_the_server_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], behaviour: Behaviour, flags: tuple[str, ...]
) -> None:
    with serving(behaviour) as server:
        status, content = _bench(
            tmp_path, "--url", server.url, "--num-requests", "3", "--output-tokens", "9", *flags
        )
    shown = capsys.readouterr()
    assert status == 0, shown.err
    longest = max(len(body["prompt"]) + body["max_tokens"] for body in server.bodies)
    assert longest == 48, "the context was not used"
    assert "do not fit the context of 48: measuring with" in shown.err
    plan = content["plan"]
    assert plan.get("calls", plan)["vocab"] == (400 if behaviour.vocab == 400 else 4001)


def test_lengths_that_fit_are_sent_as_they_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Behaviour(limits={"max_model_len": 96})) as server:
        assert _bench(tmp_path, "--url", server.url, "--num-requests", "2")[0] == 0
    assert {(len(body["prompt"]), body["max_tokens"]) for body in server.bodies} == {(64, 32)}
    assert capsys.readouterr().err == ""


def test_compare_sends_what_both_servers_take(tmp_path: Path) -> None:
    small = Behaviour(limits={"max_model_len": 50, "meta": {"n_vocab": 320}})
    with serving(small) as first, serving(Behaviour(limits={"max_model_len": 500})) as second:
        assert _bench(tmp_path, "compare", "--url", first.url, "--url", second.url, "--rounds", "1")[0] == 0
    for server in (first, second):
        assert {len(body["prompt"]) + body["max_tokens"] for body in server.bodies} == {50}
        assert max(max(body["prompt"]) for body in server.bodies) < 320


def test_equal_errors_are_shown_once_with_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Behaviour(vocab=320)) as server:
        status, content = _bench(tmp_path, "--url", server.url, "--num-requests", "40", "--vocab", "4001")
    ((text, count),) = content["rounds"][0][0]["load"]["errors"].items()
    assert status == 1 and count == 40 and text.endswith("is not below 320")
    shown = capsys.readouterr().out
    assert shown.count("is not below 320") == 1 and "40 x HTTP 400: prompt: " in shown


def test_answers_that_end_early_are_reported(tmp_path: Path) -> None:
    with serving(Behaviour(ends_after=3)) as server:
        _, content = _bench(tmp_path, "--url", server.url, "--num-requests", "4", "--output-tokens", "8")
    assert content["rounds"][0][0]["load"]["num_short"] == 4


def test_chat_datasets_extra_fields_and_whole_answers(tmp_path: Path) -> None:
    dataset = tmp_path / "data.jsonl"
    dataset.write_text(
        '{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}\n{"prompt": "yo"}\n'
    )
    with serving() as server:
        status, content = _bench(
            tmp_path, "--url", server.url + "/v1", "--endpoint", "chat", "--dataset", str(dataset),
            "--num-requests", "3", "--warmup", "0", "--no-stream", "--no-ignore-eos",
            "--extra-body", '{"top_k": 5}',
        )  # fmt: skip
    load = content["rounds"][0][0]["load"]
    assert status == 0 and load["output_tokens"] == 3 + 32 + 3
    assert load["time_to_first_token_seconds"] is None
    first, second, third = server.bodies
    assert first["messages"] == third["messages"] == [{"role": "user", "content": "hi"}]
    assert second["messages"] == [{"role": "user", "content": "yo"}]
    assert first["top_k"] == 5 and "stream" not in first and "ignore_eos" not in first


def test_the_decode_rate_is_batch_times_new_over_the_time_without_prefill(tmp_path: Path) -> None:
    with serving(Behaviour(first_seconds=0.15, gap_seconds=0.05)) as server:
        status, content = _bench(
            tmp_path, "--url", server.url, "--decode-batch", "1,4", "--output-tokens", "10", "--repeat", "3",
        )  # fmt: skip
    one, four = content["rounds"][0][0]["decode"]
    assert status == 0 and (one["batch"], four["batch"]) == (1, 4)
    # 10 tokens of 0.05 s each; a busy machine makes it slower, and never much faster: only the prefill's
    # jitter can.
    assert 8 < one["decode_tokens_per_second"] < 25
    assert 32 < four["decode_tokens_per_second"] < 100
    assert 8 < one["steady_tokens_per_second"] <= 20.5
    assert 0.15 <= one["prefill_seconds"] < 0.6
    lengths = [body["max_tokens"] for body in server.bodies]
    assert lengths == [4] * 4 + [1, 11] * 3 + ([1] * 4 + [11] * 4) * 3
    assert len({tuple(body["prompt"]) for body in server.bodies}) == len(server.bodies), (
        "a prompt was sent twice"
    )


def test_no_decode_rate_is_given_when_answers_end_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Behaviour(ends_after=5)) as server:
        status, content = _bench(tmp_path, "--url", server.url, "--decode-batch", "2")
    assert (status, content) == (1, {})
    assert "asked for 33 tokens, got 5" in capsys.readouterr().err


def test_compare_sends_the_same_calls_to_both_in_turn_and_finds_the_faster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        serving(Behaviour(gap_seconds=0.04), "slow") as slow,
        serving(Behaviour(gap_seconds=0.01), "fast") as fast,
    ):
        status, content = _bench(
            tmp_path, "compare", "--url", fast.url, "--url", slow.url, "--rounds", "2", "--num-requests", "4",
            "--output-tokens", "12", "--warmup", "0",
        )  # fmt: skip
    assert status == 0
    assert [[m["model"] for m in measured] for measured in content["rounds"]] == [["fast", "slow"]] * 2
    assert [body["prompt"] for body in fast.bodies] == [body["prompt"] for body in slow.bodies]
    assert fast.bodies[0]["prompt"] != fast.bodies[4]["prompt"], "rounds share prompts"
    assert max(fast.arrivals[:4]) < min(slow.arrivals[:4]) < min(fast.arrivals[4:]) < min(slow.arrivals[4:])
    ratios = {comparison["name"]: comparison for comparison in content["comparisons"]}
    assert len(ratios["output tokens/s"]["ratios"]) == 2
    assert ratios["output tokens/s"]["median_ratio"] > 1.5
    assert ratios["inter-token latency, p50 (s)"]["median_ratio"] < 0.8
    assert "median" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(("compare", "--url", "http://a"), "at least twice", id="one-url"),
        pytest.param(("--url", "http://a", "--url", "http://b"), "need the word compare", id="two-urls"),
        pytest.param(("--concurrency", "0"), "concurrency is 0", id="no-concurrency"),
        pytest.param(("--rate", "-1"), "rate is -1.0", id="negative-rate"),
        pytest.param(("--prompt-tokens", "9-3"), "token range is 9-3", id="span"),
        pytest.param(("--decode-batch", "1,x"), "decode-batch is '1,x'", id="batch"),
        pytest.param(("--decode-batch", "0"), "batches is (0,)", id="batch-0"),
        pytest.param(("--extra-body", "[]"), "extra-body", id="extra-body"),
        pytest.param(("--dataset", "/nowhere/file"), "/nowhere/file", id="dataset"),
    ],
)
def test_flags_that_make_no_sense_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
) -> None:
    assert _bench(tmp_path, *flags) == (2, {})
    assert words in capsys.readouterr().err


def test_a_server_that_is_not_there_is_an_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        pass
    assert _bench(tmp_path, "--url", server.url) == (1, {})
    assert server.url in capsys.readouterr().err
