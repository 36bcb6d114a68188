"""The dense engine and its experts on a CUDA device. Kernels alone: `tests/gpu`."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.checkpoint.download import embedded_directory
from actors.checkpoint.dummy.presets import preset_config
from actors.dense.batch import PrefillRows
from actors.dense.layers.prefill_attention import make_prefill, sdpa_prefill
from actors.protocol.messages import SamplingParams
from tests.dense.local_engine import LocalEngine, greedy
from tests.dense.test_exact import NAMES, assert_batch_equals_reference, assert_equals_reference, prompt
from tests.support.small_checkpoints import ORIGINAL_MAX

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


SYNC_WARNING = "called a synchronizing CUDA operation"


@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_batch_on_cuda_equals_the_reference(small_checkpoints: dict[str, Path], name: str) -> None:
    engine = LocalEngine(small_checkpoints[name], num_blocks=1024, device="cuda")
    cases = [(prompt(n, n), 10) for n in (1, 5, ORIGINAL_MAX - 4, ORIGINAL_MAX, ORIGINAL_MAX + 30)]
    assert_batch_equals_reference(engine, small_checkpoints[name], cases)
    assert engine.captured_sizes


@pytest.mark.parametrize("num_prompt_tokens", [30, 125, 300])
def test_the_embedded_model_equals_the_reference(num_prompt_tokens: int) -> None:
    """The sequence crosses to LongRoPE's long list at 128 tokens."""
    engine = LocalEngine(embedded_directory(), device="cuda")
    engine.submit("a", prompt(num_prompt_tokens), greedy(12))
    engine.run()
    assert_equals_reference(engine, embedded_directory(), "a", prompt(num_prompt_tokens), 12)
    assert engine.captured_sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_graph_reports_what_a_step_launch_by_launch_reports(dtype: torch.dtype) -> None:
    """The log-probabilities of a batch that shrinks from 7 rows to 1, so that most steps are padded. Tokens
    are forced, since in 16 bits two tokens with close scores may change places."""
    engines = [LocalEngine(embedded_directory(), device="cuda", dtype=dtype) for _ in range(2)]
    engines[1].model.captured = None
    for engine in engines:
        for index in range(7):
            forced = SamplingParams(
                max_tokens=3 + 4 * index,
                seed=1,
                temperature=0.0,
                logprobs=0,
                logit_bias={50: 1000.0},
                ignore_eos=True,
            )
            engine.submit(str(index), prompt(20 + 9 * index, index), forced)
        engine.run()
    assert len(engines[0].captured_sizes) >= 3
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for index in range(7):
        expected = engines[1].logprobs(str(index))
        assert engines[0].logprobs(str(index)) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1024), (1024, 3072), (0, 1000), (512, 1536), (2048, 3000)], ids=str
)
@pytest.mark.parametrize("window", [None, 2100])
def test_a_chunk_of_a_prompt_attends_as_in_float32(start: int, end: int, window: int | None) -> None:
    """cuDNN computes whole chunks if it is available; flash attention computes the others and those that a
    window cuts."""
    config = dataclasses.replace(preset_config("phi-3.5-moe"), sliding_window=window)
    slots = torch.arange(end, device="cuda")
    rows = PrefillRows(first_row=0, start=start, end=end, slots=slots, sliding_window=window)
    shapes = (end - start, config.num_heads), (end, config.num_kv_heads), (end, config.num_kv_heads)
    parts = [torch.randn(*shape, config.head_dim, device="cuda").bfloat16() for shape in shapes]
    result = make_prefill(config, torch.bfloat16, torch.device("cuda"))(rows, *parts).float()
    expected = sdpa_prefill(rows, *(part.float() for part in parts))
    assert (result - expected).norm() <= 5e-3 * expected.norm()


@pytest.mark.parametrize("is_captured", [True, False], ids=["graph", "launches"])
def test_a_decoding_step_waits_for_the_device_once(is_captured: bool) -> None:
    """Greedy sequences, random ones, penalties and reported log-probabilities are in one batch."""
    engine = LocalEngine(embedded_directory(), device="cuda", dtype=torch.bfloat16)
    if not is_captured:
        engine.model.captured = None
    kinds: tuple[dict[str, Any], ...] = (
        {"temperature": 0.0},
        {"top_p": 0.9, "top_k": 40},
        {"presence_penalty": 0.5, "logprobs": 3},
    )
    for index, kind in enumerate(kinds):
        params = SamplingParams(max_tokens=40, seed=index, ignore_eos=True, **kind)
        engine.submit(str(index), prompt(10, index), params)
    engine.engine.use_exchange(engine.exchange)
    for _ in range(5):
        engine.engine.step_once()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            engine.engine.step_once()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{one.filename}:{one.lineno}" for one in caught if SYNC_WARNING in str(one.message)]
    assert len(places) == 1, places
