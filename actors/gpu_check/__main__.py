"""Runs the command: options -> a model on the device -> comparisons -> timings -> report and exit status."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeAlias

import torch

from actors.checkpoint.config import ModelConfig
from actors.gpu_check.build import Built, build
from actors.gpu_check.checks import run_checks
from actors.gpu_check.clock import measure_device
from actors.gpu_check.measure import Timing, time_decode, time_prefill
from actors.gpu_check.options import parse_options
from actors.gpu_check.peer import Peer

Figures: TypeAlias = dict[str, object]
"""One row of the report, as it stands in JSON."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status.

    It is 1 if a comparison failed, 2 if the device is missing or cannot serve what was asked for, else 0.
    """
    options = parse_options(arguments)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"--device is {device}, expected cpu: torch sees no CUDA device here", file=sys.stderr)
        return 2
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    try:
        built = build(options.preset, options.layers, dtype, device, options.expert_quantization)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    config = built.config
    report = _head(options, config, device)
    checks = [] if "checks" in options.skip else _check(built)
    report["checks"] = checks
    if not {"decode", "prefill"} <= set(options.skip):
        report |= _time(options, built)
        # This model and that of transformers need not fit into memory together.
        del built
        gc.collect()
        _release(device)
        report["transformers"] = _time_peer(options, config, dtype, device)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    num_failed = sum(not check["is_passed"] for check in checks)
    if num_failed:
        print(f"FAILED: {num_failed} of {len(checks)} comparisons")
    return 1 if num_failed else 0


def _head(options: argparse.Namespace, config: ModelConfig, device: torch.device) -> Figures:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    _say(
        f"{options.preset}, {config.num_layers} layers, {options.dtype}"
        f"{', experts ' + options.expert_quantization if options.expert_quantization else ''}, "
        f"on {name} ({device}), torch {torch.__version__}"
    )
    return {
        "preset": options.preset,
        "num_layers": config.num_layers,
        "dtype": options.dtype,
        "expert_quantization": options.expert_quantization,
        "device": str(device),
        "device_name": name,
        "torch": torch.__version__,
    }


def _check(built: Built) -> list[Figures]:
    checks: list[Figures] = []
    for check in run_checks(built):
        outcome = "ok    " if check.is_passed else "FAILED"
        _say(f"{outcome} {check.name}: error {check.error:.2e}, at most {check.tolerance:.0e}")
        checks.append(asdict(check) | {"is_passed": check.is_passed})
    return checks


def _time(options: argparse.Namespace, built: Built) -> Figures:
    device = measure_device(built.dtype, built.device, options.bandwidth_gbps, options.tflops)
    bandwidth_gbps, tflops = device.bytes_per_second / 1e9, device.flops / 1e12
    _say(f"limits: {bandwidth_gbps:.0f} GB/s, {tflops:.2f} TFLOP/s")
    chunk, repeats = options.chunk_tokens, options.repeats
    rows: list[Figures] = []
    for name, size in _wanted(options):

        def measure(name: str = name, size: int = size) -> Timing:
            if name == "decode":
                return time_decode(built, device, size, options.context, repeats, options.kernels)
            return time_prefill(built, device, size, chunk, max(1, repeats // 4), options.kernels)

        timing = _or_out_of_memory(lambda: measure().as_json(), built.device)
        rows.append({"work": name, "size": size} | timing)
        _say_timing(rows[-1])
        _say_kernels(timing)
    return {"bandwidth_gbps": bandwidth_gbps, "tflops": tflops, "context": options.context, "timings": rows}


def _time_peer(
    options: argparse.Namespace, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> Figures:
    if "transformers" in options.skip:
        return {"left_out": "asked for"}
    try:
        peer = Peer(config, dtype, device)
    except (ImportError, torch.OutOfMemoryError) as error:
        _say(f"transformers: left out, {error}")
        return {"left_out": str(error)}
    _say(f"transformers {peer.version}, the same work:")
    rows: list[Figures] = []
    for name, size in _wanted(options):

        def measure(name: str = name, size: int = size) -> float:
            repeats = max(1, options.repeats // 4)
            if name == "decode":
                return peer.decode_seconds(size, options.context, repeats)
            return peer.prefill_seconds(size, repeats)

        rows.append({"work": name, "size": size} | _or_out_of_memory(lambda: {"seconds": measure()}, device))
        _say_timing(rows[-1])
    return {"version": peer.version, "timings": rows}


def _wanted(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Return all (work, size) that are to be timed, in order."""
    decode = [] if "decode" in options.skip else options.batches
    prefill = [] if "prefill" in options.skip else options.prefill
    return [*(("decode", size) for size in decode), *(("prefill", size) for size in prefill)]


def _or_out_of_memory(measure: Callable[[], Figures], device: torch.device) -> Figures:
    try:
        return measure()
    except torch.OutOfMemoryError as error:
        return {"left_out": str(error).splitlines()[0]}
    finally:
        _release(device)


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _say_timing(row: Figures) -> None:
    unit = "sequences" if row["work"] == "decode" else "tokens"
    head = f"{row['work']:>8} {row['size']:>6} {unit:<9}"
    if "left_out" in row:
        _say(f"{head}  left out: {row['left_out']}")
        return
    seconds = float(str(row["seconds"]))
    text = f"{head} {1e3 * seconds:10.3f} ms"
    if "limit_seconds" in row:
        text += (
            f", limit {1e3 * float(str(row['limit_seconds'])):9.3f} ms "
            f"({float(str(row['share_of_limit'])):6.1%}), "
            f"{float(str(row['tokens_per_second'])):10.1f} tokens/s"
        )
    _say(text)


def _say_kernels(timing: Figures) -> None:
    kernels = timing.get("kernels", [])
    assert isinstance(kernels, list)
    for kernel in kernels:
        _say(f"{1e3 * kernel['seconds']:21.3f} ms {kernel['num_launches']:6} x {kernel['name'][:80]}")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
