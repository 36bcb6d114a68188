"""The flags of `python -m actors.gpu_check`, checked."""

from __future__ import annotations

import argparse
from pathlib import Path

from actors.checkpoint.config import DTYPES
from actors.checkpoint.dummy.presets import PRESETS, preset_config
from actors.checkpoint.quantization import KINDS

PARTS = ("checks", "decode", "prefill", "transformers")


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Ends the process with status 2 and a message that names flag and value where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m actors.gpu_check",
        description=(
            "Build a model with random weights on a device, compare its layers with float32 references, and time decoding "
            "and prompts beside the device's limits and beside transformers, where that is installed. One process, no "
            "network, no Ray, no checkpoint. Exit status 1 when a comparison failed."
        ),
    )
    parser.add_argument("--preset", choices=PRESETS, default="phi-3.5-moe")
    parser.add_argument("--device", default="cuda", help="(default: cuda)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="(default: bfloat16)")
    parser.add_argument(
        "--expert-quantization", choices=tuple(KINDS), help="hold the experts in few bits (default: none)"
    )
    parser.add_argument("--layers", type=_positive, metavar="N", help="build the first N layers only")
    parser.add_argument("--batches", type=_sizes, default=[1, 8, 64, 256], help="(default: 1,8,64,256)")
    parser.add_argument("--context", type=_positive, metavar="TOKENS", help="(default: 1024)", default=1024)
    parser.add_argument("--prefill", type=_sizes, default=[2048, 8192], help="(default: 2048,8192)")
    parser.add_argument(
        "--chunk-tokens", type=_positive, default=2048, help="of a prompt per step (default: 2048)"
    )
    parser.add_argument(
        "--repeats", type=_positive, default=20, help="of which the median counts (default: 20)"
    )
    parser.add_argument("--bandwidth-gbps", type=float, help="10^9 bytes per second (default: measured)")
    parser.add_argument("--tflops", type=float, help="10^12 operations per second (default: measured)")
    parser.add_argument(
        "--skip", action="append", choices=PARTS, default=[], help="may be given several times"
    )
    parser.add_argument("--kernels", action="store_true", help="print what each kernel takes (CUDA only)")
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
