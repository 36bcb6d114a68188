"""What a processor can do, from the vendors' data sheets (bfloat16 without sparsity, one direction of the
link).

The entry `cpu` is a small virtual machine, the Genoa of `cluster/commands/bench/RESULTS.md`. A running model
reaches less than a data sheet says: the efficiencies below are rules of thumb; replace them by measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One GPU, or one CPU host whose processes share cores and memory. Raises ValueError for an illegal
    value."""

    name: str
    kind: Literal["gpu", "cpu"]
    bandwidth: float
    """Bytes per second from memory."""
    flops: float
    """Operations per second in the model's dtype."""
    memory_bytes: float
    link_bandwidth: float
    """Bytes per second from one actor to others, in one direction."""
    link_latency_seconds: float
    """Time in one direction, from rows that are ready to the start of the other side's computation."""
    bandwidth_efficiency: float = 1.0
    """Share of `bandwidth` that a model reaches."""
    flops_efficiency: float = 1.0
    """Share of `flops` that a model reaches."""
    overlap: float = 1.0
    """1 if reading memory hides computing (roofline), 0 if one waits for the other."""
    layer_overhead_seconds: float = 0.0
    """Per layer and part (dense, experts): kernel launches and all else that does not depend on the batch."""
    step_overhead_seconds: float = 0.0
    """Per step: planning, sampling, sending the tokens."""
    cores: int = 1
    """Cores of a CPU host."""
    core_bandwidth_share: float = 1.0
    """Share of the host's bandwidth that a single core reaches."""
    bf16_weight_share: float = 1.0
    """Bytes read per byte of bfloat16 weights; below 1 if weights are coded
    (`actors/kernels/c/coded.h`)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                continue
            if field.name in _SHARES and not 0 < value <= 1:
                raise ValueError(f"{field.name} is {value:g}, expected above 0 and at most 1")
            if field.name == "overlap" and not 0 <= value <= 1:
                raise ValueError(f"overlap is {value:g}, expected from 0 to 1")
            if field.name in _DURATIONS and not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} is {value:g}, expected 0 or more")
            if field.name in _RATES and not 0 < value < float("inf"):
                raise ValueError(f"{field.name} is {value:g}, expected a finite number above 0")


_SHARES = ("bandwidth_efficiency", "flops_efficiency", "core_bandwidth_share", "bf16_weight_share")
_DURATIONS = ("link_latency_seconds", "layer_overhead_seconds", "step_overhead_seconds")
_RATES = ("bandwidth", "flops", "memory_bytes", "link_bandwidth", "cores")

_GB, _TB, _T = 1e9, 1e12, 1e12


def _gpu(name: str, bandwidth: float, flops: float, memory_bytes: float, link_bandwidth: float) -> Hardware:
    return Hardware(
        name=name,
        kind="gpu",
        bandwidth=bandwidth,
        flops=flops,
        memory_bytes=memory_bytes,
        link_bandwidth=link_bandwidth,
        link_latency_seconds=20e-6,
        bandwidth_efficiency=0.8,
        flops_efficiency=0.6,
        layer_overhead_seconds=10e-6,
        step_overhead_seconds=0.5e-3,
    )


_TABLE = {
    hardware.name: hardware
    for hardware in (
        _gpu("h100", 3.35 * _TB, 989 * _T, 80 * _GB, 450 * _GB),
        _gpu("h200", 4.8 * _TB, 989 * _T, 141 * _GB, 450 * _GB),
        _gpu("a100", 2.039 * _TB, 312 * _T, 80 * _GB, 300 * _GB),
        _gpu("l40s", 0.864 * _TB, 362 * _T, 48 * _GB, 32 * _GB),
        _gpu("b200", 8.0 * _TB, 2250 * _T, 180 * _GB, 900 * _GB),
        Hardware(
            name="cpu",
            kind="cpu",
            bandwidth=30 * _GB,
            flops=440e9,
            memory_bytes=24 * _GB,
            link_bandwidth=2 * _GB,
            link_latency_seconds=40e-6,
            overlap=0.0,
            step_overhead_seconds=1e-3,
            cores=2,
            core_bandwidth_share=0.75,
            bf16_weight_share=0.754,
        ),
    )
}
"""The GPUs are SXM modules with NVLink, but an L40S has PCIe 4.0 x16. `cpu` has two cores with
AVX512-BF16."""

NAMES = tuple(_TABLE)


def hardware(name: str, **changes: float | None) -> Hardware:
    """The table's entry, with the values of all changes that are not None.

    Raises ValueError for an unknown name or an illegal value.
    """
    if name.lower() not in _TABLE:
        raise ValueError(f"gpu is {name!r}, expected one of {', '.join(NAMES)}")
    wanted = {field: value for field, value in changes.items() if value is not None}
    return replace(_TABLE[name.lower()], **wanted)  # type: ignore[arg-type]
