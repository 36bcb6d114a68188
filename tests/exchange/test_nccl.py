"""Exchanges over NCCL: results are those of `local` on one device.

They are not the same bit for bit: on CUDA the sizes of a product's tiles depend on the number of rows.
"""

from __future__ import annotations

import pytest
import torch

from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.dummy.presets import preset_config
from actors.exchange.local import LocalExchange
from actors.expert.experts import GroupedExperts
from actors.protocol.settings import ExchangeSettings
from tests.exchange.processes import DTYPES, PRESET, ExpertProcesses, linked, spread
from tests.exchange.test_conformance import CASES, MAX_ROWS

NUM_DEVICES = torch.cuda.device_count()
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        NUM_DEVICES < 2, reason=f"NCCL wants a CUDA device per rank: at least 2, here are {NUM_DEVICES}"
    ),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("transport", "num_actors"), [("links", 1), ("links", 2), ("all_to_all", 1), ("all_to_all", 2)]
)
def test_results_are_those_of_local(
    processes: ExpertProcesses, transport: str, num_actors: int, dtype: str
) -> None:
    if transport == "all_to_all" and num_actors >= NUM_DEVICES:
        pytest.skip(f"one group of {num_actors + 1} ranks wants as many CUDA devices, here are {NUM_DEVICES}")
    config = preset_config(PRESET)
    experts = GroupedExperts.load(DummyReader(config), config, range(16), DTYPES[dtype], "cuda")
    local = LocalExchange(experts.forward)
    settings = ExchangeSettings(transport=transport, backend="nccl", max_rows=MAX_ROWS)
    with linked(processes, settings, dtype, spread(num_actors)) as star:
        for number, (routes, num_tokens) in enumerate(CASES):
            layer = number % config.num_layers
            rows = torch.randn(num_tokens, config.hidden_size, device="cuda").to(DTYPES[dtype])
            ids, weights = routes(num_tokens).cuda(), torch.rand(num_tokens, 2, device="cuda")
            expected = local.combine(local.dispatch(layer, rows, ids, weights))
            result = star.exchange.combine(star.exchange.dispatch(layer, rows, ids, weights))
            assert result.shape == expected.shape and result.dtype == expected.dtype
            error = (result.float() - expected.float()).norm()
            assert error <= TOLERANCE[dtype] * expected.float().norm(), f"{num_tokens} tokens"
