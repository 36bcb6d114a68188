"""A whole dense engine with its experts in the same process, driven step by step or by its own thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.read_quantized import dense_quantization, serving_quantization
from actors.checkpoint.reader import CheckpointReader
from actors.checkpoint.weights import read_dense
from actors.dense.engine import Engine
from actors.dense.kv_cache import KVCache
from actors.dense.model import DenseModel
from actors.dense.scheduling.block_pool import BlockPool
from actors.dense.scheduling.prefill_budget import PrefillBudget
from actors.dense.scheduling.scheduler import Scheduler, SchedulerLimits
from actors.dense.step_results import Emit
from actors.exchange.interface import Exchange
from actors.exchange.local import LocalExchange
from actors.expert.experts import GroupedExperts
from actors.protocol.messages import SamplingParams, SequenceDelta, StepOutput, Submit

FLOAT32 = torch.float32


class LocalEngine:
    """`engine`, and everything that it has told, by sequence."""

    def __init__(
        self,
        directory: Path,
        num_blocks: int = 256,
        block_size: int = 4,
        max_num_sequences: int = 32,
        max_batch_tokens: int = 64,
        emit: Emit | None = None,
        device: str = "cpu",
        park_seconds: float = 60.0,
        dtype: torch.dtype = FLOAT32,
        quantization: str | None = None,
        dense_kind: str | None = None,
        shares_prefixes: bool = True,
        max_drafts: int = 0,
    ) -> None:
        self.config = ModelConfig.from_directory(directory)
        reader = CheckpointReader(directory)
        quantized = dense_quantization(dense_kind, self.config, torch.device(device))
        self.model = DenseModel(self.config, read_dense(reader, self.config, dtype, device), quantized)
        kind = serving_quantization(quantization, self.config, torch.device(device))
        experts = GroupedExperts.load(reader, self.config, range(16), dtype, device, quantization=kind)
        cache = KVCache(self.config, num_blocks, block_size, dtype, torch.device(device))
        limits = SchedulerLimits(
            max_num_sequences=max_num_sequences,
            max_batch_tokens=max_batch_tokens,
            long_rope_threshold=self.config.rope.original_max_position_embeddings,
        )
        self.pool = BlockPool(num_blocks, block_size, shares_prefixes)
        self.scheduler = Scheduler(limits, self.pool)
        prefill_budget = PrefillBudget(2.0, max_batch_tokens)
        self.engine = Engine(
            self.model, cache, self.scheduler, emit or self._note, prefill_budget, park_seconds, max_drafts
        )
        self.exchange: Exchange = LocalExchange(experts.forward, combined=experts.combined)
        self.deltas: dict[str, list[SequenceDelta]] = {}
        self.outputs: list[StepOutput] = []

    @property
    def captured_sizes(self) -> set[tuple[int, int, int]]:
        """Sizes of the steps that were captured as CUDA graphs: buckets of rows, of parts of the context and
        of blocks."""
        assert self.model.captured is not None
        return set(self.model.captured._steps)

    def _note(self, connection: int, output: StepOutput) -> None:
        self.outputs.append(output)
        for delta in output.deltas:
            self.deltas.setdefault(delta.sequence_id, []).append(delta)

    def submit(
        self,
        sequence_id: str,
        prompt_ids: list[int],
        params: SamplingParams,
        output_ids: list[int] | None = None,
        cache_salt: str = "",
    ) -> None:
        self.engine.submit(
            0,
            Submit(
                sequence_id=sequence_id,
                prompt_ids=prompt_ids,
                params=params,
                output_ids=output_ids or [],
                cache_salt=cache_salt,
            ),
        )

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left to do."""
        if not self.engine.is_ready:
            self.engine.use_exchange(self.exchange)
        for _ in range(max_steps):
            self.engine.step_once()
            if not (self.scheduler.running or self.scheduler.waiting):
                return
        raise AssertionError(f"not done after {max_steps} steps")

    def tokens(self, sequence_id: str) -> list[int]:
        return [token for delta in self.deltas[sequence_id] for token in delta.token_ids]

    def logprobs(self, sequence_id: str) -> list[float]:
        return [entry.logprob for delta in self.deltas[sequence_id] for entry in delta.logprobs]

    def finish_reason(self, sequence_id: str) -> str | None:
        return self.deltas[sequence_id][-1].finish_reason


def greedy(max_tokens: int, **changes: Any) -> SamplingParams:
    """Parameters of a greedy sequence that ignores stop tokens and reports log-probabilities."""
    fixed: dict[str, Any] = {"seed": 0, "temperature": 0.0, "logprobs": 0, "ignore_eos": True}
    return SamplingParams(max_tokens=max_tokens, **(fixed | changes))
