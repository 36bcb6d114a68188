"""Tables of an actor's experts for the kernels, which use them when they serve links by themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actors.expert.experts import GroupedExperts
from actors.expert.layers.cpu_kernels import GroupedLinearLayer
from actors.kernels.serve import ServeLayer, ServeTables
from actors.kernels.threads import num_threads


def serve_tables(experts: GroupedExperts, expert_rows: npt.NDArray[np.int64]) -> ServeTables | None:
    """The tables; None unless the project's CPU kernels compute all layers. `expert_rows` [E] counts rows."""
    layers = [experts.layer(index).compute for index in range(experts.num_layers)]
    own = [layer for layer in layers if isinstance(layer, GroupedLinearLayer)]
    if not own or len(own) < len(layers):
        return None
    return ServeTables(
        layers=(ServeLayer * len(own))(*(layer.table for layer in own)),
        memory=own,
        expert_rows=expert_rows,
        width=own[0].width,
        is_bf16=own[0].is_bf16,
        num_threads=num_threads(),
    )
