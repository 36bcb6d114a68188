"""Runs `python -m actors.gpu_check` on a CPU with the tiny model: the same comparisons and the same
report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from actors.dense.layers.router import Route
from actors.gpu_check import checks
from actors.gpu_check.__main__ import main
from actors.gpu_check.options import parse_options

SMALL = ["--preset", "tiny", "--device", "cpu", "--layers", "2", "--repeats", "1", "--skip", "transformers"]


def test_all_comparisons_pass_and_every_timing_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    sizes = ["--batches", "1,3", "--context", "40", "--prefill", "70", "--chunk-tokens", "32"]
    limits = ["--bandwidth-gbps", "10", "--tflops", "0.1"]
    assert main([*SMALL, *sizes, *limits, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["num_layers"] == 2
    assert len(report["checks"]) == 11 and all(check["is_passed"] for check in report["checks"])
    assert [(row["work"], row["size"]) for row in report["timings"]] == [
        ("decode", 1),
        ("decode", 3),
        ("prefill", 70),
    ]
    for row in report["timings"]:
        assert row["share_of_limit"] == pytest.approx(row["limit_seconds"] / row["seconds"])
    assert report["transformers"] == {"left_out": "asked for"}
    shown = capsys.readouterr().out
    assert "2 layers" in shown and "limits: 10 GB/s, 0.10 TFLOP/s" in shown and "FAILED" not in shown


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_comparisons_hold_in_other_dtypes(dtype: str) -> None:
    assert main([*SMALL, "--dtype", dtype, "--skip", "decode", "--skip", "prefill"]) == 0


def test_a_wrong_result_is_named_and_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plain_softmax(scores: torch.Tensor, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
        best = scores.float().softmax(dim=-1).topk(2)
        return best.indices, best.values

    def make_wrong_route(dtype: torch.dtype, device: torch.device) -> Route:
        return plain_softmax

    monkeypatch.setattr(checks, "make_route", make_wrong_route)
    assert main([*SMALL, "--skip", "decode", "--skip", "prefill"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert all(line.startswith("FAILED router") for line in failed[:-1])
    assert failed[-1] == "FAILED: 2 of 11 comparisons"


def test_a_result_that_is_no_number_fails() -> None:
    error = checks.relative_error(torch.tensor([1.0, float("nan")]), torch.ones(2))
    assert not checks.Check("any", error, 1.0).is_passed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "tiny", "--layers", "9"], "--layers is 9, expected at most the preset's 4"),
        (["--preset", "tiny", "--context", "2048"], "--context needs 2049 positions, expected at most"),
        (["--preset", "tiny", "--context", "9", "--prefill", "4096"], "--prefill needs 4096 positions"),
        (["--batches", "1,0"], "'0', expected a whole number above 0"),
        (["--tflops", "-1"], "--tflops is -1.0, expected a number above 0"),
    ],
)
def test_a_bad_option_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_options(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "mid"]) == 2
    assert "--device is cuda, expected cpu" in capsys.readouterr().err
