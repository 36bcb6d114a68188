"""The structures of `phimoe_decode_step`'s exchange. Their fields are those of `c/exchange.h`, in the same
order."""

from __future__ import annotations

import ctypes

_ADDRESS, _COUNT = ctypes.c_void_p, ctypes.c_int64


class ExchangePeer(ctypes.Structure):
    """A link, and the message and the answer that are under way on it."""

    _fields_ = (
        ("descriptor", _COUNT),
        ("epoch", _COUNT),
        ("outgoing", _ADDRESS),
        ("incoming", _ADDRESS),
        ("sequence", _COUNT),
        ("num_results", _COUNT),
        ("num_bytes", _COUNT),
        ("num_sent", _COUNT),
        ("num_read", _COUNT),
        ("sent_ns", _COUNT),
        ("answered_ns", _COUNT),
    )


class ExchangeTask(ctypes.Structure):
    """All links of a dense actor, and the exchanges of one step over them."""

    _fields_ = (
        ("peers", _ADDRESS),
        ("holders", _ADDRESS),
        ("hedge_delay_ns", _ADDRESS),
        ("answers", _ADDRESS),
        ("expert_rows", _ADDRESS),
        ("places", _ADDRESS),
        ("owners", _ADDRESS),
        ("combined", _ADDRESS),
        ("num_peers", _COUNT),
        ("num_experts", _COUNT),
        ("magic", _COUNT),
        ("next_sequence", _COUNT),
        ("row_bytes", _COUNT),
        ("wakeup", _COUNT),
        ("num_answers", _COUNT),
    )
