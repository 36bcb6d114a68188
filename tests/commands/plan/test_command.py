"""Tests the command line of `phimoe plan`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.commands.bench import command as bench
from cluster.commands.plan import command
from tests.commands.bench.server import Behaviour, serving

RESULTS_BATCHES = (1, 4, 16, 32)


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


def measured_file(tmp_path: Path, *rounds: tuple[float, ...]) -> Path:
    """A file such as `phimoe bench --decode-batch 1,4,16,32 --prompt-tokens 64 --output-tokens 32 --json
    FILE` writes."""
    content = {
        "plan": {"batches": list(RESULTS_BATCHES), "prompt_tokens": 64, "new_tokens": 32, "repeat": 3},
        "rounds": [
            [
                {
                    "url": "http://127.0.0.1:8000",
                    "model": "mid",
                    "decode": [
                        {"batch": batch, "decode_tokens_per_second": rate, "min": rate, "max": rate}
                        for batch, rate in zip(RESULTS_BATCHES, rates, strict=True)
                    ],
                }
            ]
            for rates in rounds
        ],
        "comparisons": [],
    }
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(content))
    return path


def test_a_table_names_everything_that_is_recommended(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("phi-3.5-moe", "--gpu", "H100", "--rate", "50", "--target-latency", "60ms") == 0
    shown = capsys.readouterr().out
    for name in (
        "dense actors", "expert actors", "expert replicas", "micro-batches", "sequences per dense actor",
        "KV capacity per dense actor", "tokens/s per GPU", "bound by", "time between tokens",
    ):  # fmt: skip
        assert name in shown


def test_json_holds_plan_demand_and_hardware(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("phi-3.5-moe", "--gpu", "h200", "--bandwidth-gbps", "4300", "--flops", "900T", "--json") == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert content["hardware"]["bandwidth"] == 4.3e12 and content["hardware"]["flops"] == 9e14
    assert content["demand"]["context_tokens"] == 512 + 256
    plan = content["plan"]
    assert plan["tokens_per_second_per_gpu"] > 0 and plan["step"]["bound_by"]
    assert (content["step_in_one_micro_batch"] is None) == (plan["layout"]["micro_batches"] == 1)


def test_a_checkpoint_directory_is_as_good_as_a_preset(
    small_checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(small_checkpoints["like-the-real-one"])
    flags = ("--gpu", "cpu", "--prompt-tokens", "8", "--output-tokens", "8", "--json")
    assert run(directory, *flags) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["batch"] >= 1


def test_predictions_stand_beside_the_medians_of_the_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = measured_file(tmp_path, (108, 220, 410, 600), (111, 214, 406, 611), (114, 1, 1, 1000))
    assert run("mid", "--gpu", "cpu", "--validate", str(path), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert [row["measured_tokens_per_second"] for row in rows] == [111, 214, 406, 611]
    for row in rows:
        ratio = row["predicted_tokens_per_second"] / row["measured_tokens_per_second"]
        assert row["difference_percent"] == pytest.approx(100 * (ratio - 1))


def test_what_bench_writes_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    flags = ("--decode-batch", "1,4", "--prompt-tokens", "8", "--output-tokens", "5", "--repeat", "1")
    with serving(Behaviour(gap_seconds=0.02)) as server:
        assert bench.run(parser.parse_args(["--url", server.url, *flags, "--json", str(path)])) == 0
    capsys.readouterr()
    assert run("mid", "--gpu", "cpu", "--validate", str(path), "--tolerance", "1e9", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    written = json.loads(path.read_text())["rounds"][0][0]["decode"]
    assert [(row["batch"], row["measured_tokens_per_second"]) for row in rows] == [
        (rate["batch"], rate["decode_tokens_per_second"]) for rate in written
    ]
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("rates", "flags"),
    [
        pytest.param((111, 214, 406, 611), (), id="as-it-is"),
        pytest.param((87, 160, 327, 531), ("--bf16-weight-share", "1"), id="weights-of-16-bits"),
    ],
)  # fmt: skip
def test_the_readmes_decode_figures_are_within_25_percent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rates: tuple[float, ...], flags: tuple[str, ...]
) -> None:
    path = measured_file(tmp_path, rates)
    assert run("mid", "--gpu", "cpu", "--validate", str(path), *flags) == 0, capsys.readouterr().out
    assert "difference" in capsys.readouterr().out


def test_a_prediction_that_is_off_is_an_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = measured_file(tmp_path, (1110, 214, 406, 611))
    assert run("mid", "--gpu", "cpu", "--validate", str(path)) == 3
    assert run("mid", "--gpu", "cpu", "--validate", str(path), "--tolerance", "95") == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("llama",), 2, "model is 'llama', expected a checkpoint directory or one of tiny, mid, phi-3.5-moe"),
        (("mid", "--gpu", "tpu"), 2, "gpu is 'tpu', expected one of h100"),
        (("mid", "--flops", "fast"), 2, "flops is 'fast', expected a number such as 989T"),
        (("mid", "--target-latency", "soon"), 2, "target_latency is 'soon', expected a time such as 50ms"),
        (("mid", "--dtype", "int3"), 2, "dtype is 'int3', expected auto or one of bfloat16"),
        (("mid", "--context", "5"), 2, "context_tokens is 5, expected at least"),
        (("phi-3.5-moe", "--target-latency", "1ms"), 1, "target_latency is 1 ms, expected at least"),
        (("mid", "--validate", "/nowhere.json"), 2, "nowhere.json"),
    ],
)
def test_errors_name_field_value_and_what_would_be_right(
    words: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"plan": {}, "rounds": []}',
        '{"plan": {"prompt_tokens": 1, "new_tokens": 1}, "rounds": []}',
    ],
)
def test_a_file_that_is_no_measurement_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    path = tmp_path / "measured.json"
    path.write_text(content)
    assert run("mid", "--gpu", "cpu", "--validate", str(path)) == 2
    assert "measured.json" in capsys.readouterr().err


def test_it_loads_neither_torch_nor_ray() -> None:
    import subprocess
    import sys

    code = (
        "import sys, cluster.commands.plan.command; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
