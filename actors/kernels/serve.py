"""The structures of `phimoe_serve_links`. Their fields are those of `c/serve.h`, in the same order."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.kernels.quantization import Quantization

_ADDRESS, _COUNT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class ServeLink(ctypes.Structure):
    """A link, and the message and the answer that are under way on it."""

    _fields_ = (
        ("descriptor", _COUNT),
        ("epoch", _COUNT),
        ("incoming", _ADDRESS),
        ("outgoing", _ADDRESS),
        ("num_read", _COUNT),
        ("num_bytes", _COUNT),
        ("num_sent", _COUNT),
    )


class ServeLayer(ctypes.Structure):
    """The experts of a layer, as the kernel `experts` takes them."""

    _fields_ = (
        ("slots", _ADDRESS),
        ("gate_up", _ADDRESS),
        ("down", _ADDRESS),
        ("num_slots", _COUNT),
        ("gate_up_quantized", Quantization),
        ("down_quantized", Quantization),
    )


class ServeTask(ctypes.Structure):
    """All links of an expert actor, and the experts with which it answers their messages."""

    _fields_ = (
        ("links", _ADDRESS),
        ("layers", _ADDRESS),
        ("expert_rows", _ADDRESS),
        ("expert_ids", _ADDRESS),
        ("num_links", _COUNT),
        ("num_layers", _COUNT),
        ("num_experts", _COUNT),
        ("num_choices", _COUNT),
        ("max_tokens", _COUNT),
        ("hidden_size", _COUNT),
        ("width", _COUNT),
        ("row_bytes", _COUNT),
        ("magic", _COUNT),
        ("wakeup", _COUNT),
        ("is_bf16", _INT),
        ("num_threads", _INT),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeTables:
    """The experts of all layers, in the form that the kernels take."""

    layers: ctypes.Array[ServeLayer]
    memory: object
    """The objects that own the memory to which `layers` points. They must live as long as `layers` is
    used."""
    expert_rows: npt.NDArray[np.int64]
    """The rows of each expert so far [E]. The kernels add to these counters."""
    width: int
    is_bf16: bool
    num_threads: int
