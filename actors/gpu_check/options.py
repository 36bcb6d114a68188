"""Parses and checks the flags of `python -m actors.gpu_check`."""

from __future__ import annotations

import argparse
from pathlib import Path

from actors.checkpoint.config import DTYPES
from actors.checkpoint.dummy.presets import PRESETS, preset_config
from actors.checkpoint.quantization import KINDS

PARTS = ("checks", "decode", "prefill", "transformers")


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Parse the flags. A wrong flag ends the process with status 2 and names flag and value."""
    parser = argparse.ArgumentParser(
        prog="python -m actors.gpu_check",
        description=(
            "Build a model with random weights on a device and compare its layers with float32 references. "
            "Then time decoding and prompts, and compare the times with the device's limits and, if it is "
            "installed, with transformers. The command is one process and needs no network, no Ray and no "
            "checkpoint. Its exit status is 1 if a comparison failed."
        ),
    )
    parser.add_argument("--preset", choices=PRESETS, default="phi-3.5-moe")
    parser.add_argument("--device", default="cuda", help="(default: cuda)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="(default: bfloat16)")
    parser.add_argument(
        "--expert-quantization", choices=tuple(KINDS), help="quantize the experts (default: no quantization)"
    )
    parser.add_argument("--layers", type=_positive, metavar="N", help="build only the first N layers")
    parser.add_argument(
        "--batches",
        type=_sizes,
        default=[1, 8, 64, 256],
        help="numbers of sequences that decode together (default: 1,8,64,256)",
    )
    parser.add_argument(
        "--context",
        type=_positive,
        metavar="TOKENS",
        help="tokens before the decoded one (default: 1024)",
        default=1024,
    )
    parser.add_argument(
        "--prefill", type=_sizes, default=[2048, 8192], help="lengths of prompts (default: 2048,8192)"
    )
    parser.add_argument(
        "--chunk-tokens", type=_positive, default=2048, help="tokens of a prompt per step (default: 2048)"
    )
    parser.add_argument(
        "--repeats",
        type=_positive,
        default=20,
        help="repetitions of a step, a quarter as many for a prompt; the median counts (default: 20)",
    )
    parser.add_argument(
        "--bandwidth-gbps", type=float, help="bandwidth limit in 10^9 bytes per second (default: measured)"
    )
    parser.add_argument(
        "--tflops", type=float, help="compute limit in 10^12 operations per second (default: measured)"
    )
    parser.add_argument(
        "--skip",
        action="append",
        choices=PARTS,
        default=[],
        help="leave this part out; may be given several times",
    )
    parser.add_argument("--kernels", action="store_true", help="print the time of each kernel (CUDA only)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args(arguments)
    config = preset_config(options.preset)
    if options.layers is not None and options.layers > config.num_layers:
        parser.error(f"--layers is {options.layers}, expected at most the preset's {config.num_layers}")
    longest = config.max_position_embeddings
    sizes = {"decode": ("--context", options.context + 1), "prefill": ("--prefill", max(options.prefill))}
    for part, (flag, num_tokens) in sizes.items():
        if part not in options.skip and num_tokens > longest:
            parser.error(f"{flag} needs {num_tokens} positions, expected at most the preset's {longest}")
    for flag, rate in (("--bandwidth-gbps", options.bandwidth_gbps), ("--tflops", options.tflops)):
        if rate is not None and not 0 < rate < float("inf"):
            parser.error(f"{flag} is {rate}, expected a number above 0")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number above 0")
    return int(text)


def _sizes(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]
