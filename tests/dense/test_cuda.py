"""The dense engine and its experts on a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.dense.local_engine import LocalEngine, greedy
from tests.dense.test_exact import NAMES, assert_equals_reference, prompt
from tests.small_checkpoints import ORIGINAL_MAX

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_batch_on_cuda_equals_the_reference(small_checkpoints: dict[str, Path], name: str) -> None:
    engine = LocalEngine(small_checkpoints[name], num_blocks=1024, device="cuda")
    cases = [(prompt(n, n), 10) for n in (1, 5, ORIGINAL_MAX - 4, ORIGINAL_MAX, ORIGINAL_MAX + 30)]
    for index, (prompt_ids, num_tokens) in enumerate(cases):
        engine.submit(str(index), prompt_ids, greedy(num_tokens))
    engine.run()
    for index, (prompt_ids, num_tokens) in enumerate(cases):
        assert_equals_reference(engine, small_checkpoints[name], str(index), prompt_ids, num_tokens)
