"""Tests pairs of prompts with a common prefix, on a server whose second answer comes sooner."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.commands.bench import command
from cluster.commands.bench.prefix import PrefixPlan, pair
from tests.commands.bench.server import Behaviour, serving

PLAN = PrefixPlan(shared_tokens=20, own_tokens=5, new_tokens=2, repeat=2, vocab=4001, seed=1)


def test_the_prompts_of_a_pair_differ_behind_their_prefix_and_pairs_from_the_beginning() -> None:
    pairs = [pair(PLAN, "completions", seed) for seed in (1, 2)]
    for first, second in pairs:
        assert first.token_ids is not None and second.token_ids is not None
        assert len(first.token_ids) == len(second.token_ids) == 25
        assert first.token_ids[:20] == second.token_ids[:20]
        assert first.token_ids[20:] != second.token_ids[20:]
        assert first.max_tokens == 2
    assert (pairs[0][0].token_ids or ())[:20] != (pairs[1][0].token_ids or ())[:20]


def test_chat_prompts_share_their_first_words() -> None:
    words = []
    for call in pair(PLAN, "chat", 1):
        assert call.messages is not None
        (message,) = call.messages
        words.append(message["content"].split())
    assert words[0][:20] == words[1][:20] and words[0] != words[1]
    assert [len(part) for part in words] == [25, 25]


def bench(tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    path = tmp_path / "figures.json"
    status = command.run(parser.parse_args([*flags, "--json", str(path)]))
    return status, json.loads(path.read_text()) if path.exists() else {}


def test_times_of_new_and_known_prefixes_are_set_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Behaviour(first_seconds=0.02)) as server:
        status, content = bench(
            tmp_path, "--url", server.url, "--shared-prefix-tokens", "30", "--prompt-tokens", "4",
            "--output-tokens", "2", "--repeat", "3",
        )  # fmt: skip
    times = content["rounds"][0][0]["prefix"]
    assert status == 0 and times["shared_tokens"] == 30
    assert times["first_seconds"] >= 0.02 and times["second_seconds"] >= 0.02
    assert times["min_ratio"] <= times["ratio"] <= times["max_ratio"]
    assert times["cached_tokens"] is None, "this server does not say"
    assert len(server.bodies) == 8, "a pair to warm up, and three"
    prefixes = [tuple(body["prompt"][:30]) for body in server.bodies]
    assert prefixes[::2] == prefixes[1::2] and len(set(prefixes)) == 4
    assert "ratio of each pair" in capsys.readouterr().out


def test_shared_tokens_that_do_not_fit_the_context_are_cut() -> None:
    assert PLAN.fitted(64, None) == replace(PLAN, vocab=64)
    assert PLAN.fitted(64, 27) == replace(PLAN, vocab=64)
    assert PLAN.fitted(64, 20) == replace(PLAN, vocab=64, shared_tokens=13)
    with pytest.raises(ValueError, match="leave no shared token in the context of 7"):
        PLAN.fitted(64, 7)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rate", "3"), "shared-prefix-tokens goes with neither"),
        (("--decode-batch", "1"), "decode-batch does not go with shared-prefix-tokens"),
        (("--no-stream",), "shared-prefix-tokens does not go with no-stream"),
        (("--prompt-tokens", "3-5"), "prompt-tokens is '3-5', expected one number"),
        (("--repeat", "0"), "repeat is 0, expected at least 1"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
) -> None:
    status, _ = bench(tmp_path, "--shared-prefix-tokens", "30", *flags)
    assert status == 2 and words in capsys.readouterr().err
