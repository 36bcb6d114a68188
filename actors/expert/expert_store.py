"""The experts that an actor holds; they change while the actor serves.

    wanted    experts that it was told to hold     `hold` and `drop` change them at once
    held      experts that it can compute          follow in the background, layer by layer

Only additions show as "loading". Dropped experts are no longer asked for, so it does not matter when exactly
their memory is freed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

import numpy as np
import torch

from actors.checkpoint.layout import expert_tensors
from actors.checkpoint.open import open_model
from actors.checkpoint.read_quantized import serving_quantization
from actors.checkpoint.weights import ProgressCallback, serving_dtype
from actors.exchange.interface import NotHeldError
from actors.expert.cpu_affinity import CoreClaim
from actors.expert.experts import GroupedExperts
from actors.expert.kernel_tables import serve_tables
from actors.kernels.serve import ServeTables
from actors.protocol.messages import Progress
from actors.protocol.settings import ExpertSettings

logger = logging.getLogger(__name__)


class ExpertStore:
    """Some experts of every layer, loaded by the constructor, which raises as `open_model` does."""

    def __init__(
        self,
        settings: ExpertSettings,
        experts: tuple[int, ...],
        device: torch.device,
        progress: ProgressCallback,
    ) -> None:
        config, reader = open_model(settings.source, lambda config: expert_tensors(config, experts))
        self.hidden_size = config.hidden_size
        self.num_experts = config.num_experts
        self.num_choices = config.num_experts_per_token
        self.dtype = serving_dtype(settings.dtype, config)
        self.quantization = serving_quantization(settings.expert_quantization, config, device)
        """How the weights are quantized (see `serving_quantization`); None if they are not."""
        self.rows_of_expert = np.zeros(config.num_experts, dtype=np.int64)
        self._settings, self._device = settings, device
        self._claim = CoreClaim(settings.num_threads) if device.type == "cpu" else None
        self._experts = GroupedExperts.load(
            reader, config, experts, self.dtype, device, progress, self.quantization
        )
        self._guard = threading.Lock()
        """Protects the fields below; held only briefly."""
        self._wanted = frozenset(experts)
        self._reported = frozenset(experts)
        self._is_changing = False
        self._progress: Progress | None = None
        self._tables: ServeTables | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called when the result of `tables` is about to become outdated."""

    @property
    def experts(self) -> tuple[int, ...]:
        """The experts that are held in every layer and not dropped, ascending."""
        with self._guard:
            return tuple(sorted(self._reported))

    @property
    def progress(self) -> Progress | None:
        """The progress of the last `hold`; None before the first."""
        with self._guard:
            return self._progress

    def hold(self, experts: Iterable[int]) -> None:
        """Load these experts as well. Raises ValueError for an expert that the model does not have."""
        wanted = self._checked(experts)
        with self._guard:
            self._wanted |= wanted
            if self._wanted <= self._reported:
                self._progress = Progress(state="loaded", bytes_done=0, bytes_total=0)
                return
            self._progress = Progress(state="loading", bytes_done=0, bytes_total=0)
            self._begin_change()

    def drop(self, experts: Iterable[int]) -> None:
        """Drop these experts.

        Raises ValueError for an expert that the model does not have, and if no expert would be left.
        """
        unwanted = self._checked(experts)
        with self._guard:
            if self._wanted <= unwanted:
                raise ValueError(
                    f"experts is {sorted(unwanted)}, expected to leave one of {sorted(self._wanted)}"
                )
            self._wanted -= unwanted
            self._reported -= unwanted
            self._begin_change()

    def release(self) -> None:
        """Give the claimed cores up. The weights are freed with this object."""
        if self._claim is not None:
            self._claim.release()

    def serve(
        self,
        layer: int,
        rows: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        num_results: int,
    ) -> torch.Tensor:
        """See `exchange.interface.Serve`. Calls come one at a time."""
        if self._claim is not None:
            self._claim.settle()
        held = self._experts.layer(layer)
        # Ids are shifted by one, so that -1 (no expert here) is counted first and cut off.
        counts = np.bincount(expert_ids.numpy().reshape(-1) + 1, minlength=self.num_experts + 1)[1:]
        lacking = [expert for expert in np.flatnonzero(counts).tolist() if expert not in held.experts]
        if lacking:
            raise NotHeldError(lacking)
        ids, scales = expert_ids.to(self._device), weights.to(self._device)
        results = held.forward(rows, ids, scales, num_results)
        self.rows_of_expert += counts
        return results

    def tables(self) -> ServeTables | None:
        """The experts with which `serve` computes, as tables for the kernels and the calling thread.

        Tables stay as they are; after `on_change` the caller must ask again. None if the kernels cannot
        compute these experts, and while experts are added or dropped.
        """
        if self._claim is not None:
            self._claim.settle()
        with self._guard:
            if self._tables is None and not self._is_changing:
                self._tables = serve_tables(self._experts, self.rows_of_expert)
            return self._tables

    def _checked(self, experts: Iterable[int]) -> frozenset[int]:
        unknown = sorted(set(experts) - set(range(self.num_experts)))
        if unknown:
            raise ValueError(f"experts names {unknown}, expected 0 to {self.num_experts - 1}")
        return frozenset(experts)

    def _begin_change(self) -> None:
        if not self._is_changing:
            self._is_changing = True
            self._tables = None
            self.on_change()
            threading.Thread(target=self._change, name="change-experts", daemon=True).start()

    def _change(self) -> None:
        """Load and drop experts until the held experts are the wanted experts."""
        while True:
            with self._guard:
                wanted = tuple(sorted(self._wanted))
                self._reported &= self._wanted
                if wanted == self._experts.experts:
                    self._reported = self._wanted
                    self._is_changing = False
                    self._end_progress(None)
                    return
            try:
                self._hold_exactly(wanted)
            except Exception as error:
                logger.exception("experts %s cannot be loaded", wanted)
                with self._guard:
                    # Report only what is certainly held. The next `hold` or `drop` tries again.
                    self._reported &= frozenset(self._experts.experts)
                    self._wanted = self._reported
                    self._is_changing = False
                    self._end_progress(str(error) or repr(error))
                return

    def _hold_exactly(self, experts: tuple[int, ...]) -> None:
        new = sorted(set(experts) - set(self._experts.experts))
        config, reader = open_model(self._settings.source, lambda config: expert_tensors(config, new))
        self._experts.change(reader, config, experts, self.dtype, self._device, self._note, self.quantization)

    def _note(self, bytes_done: int, bytes_total: int) -> None:
        with self._guard:
            if self._progress is not None and self._progress.state == "loading":
                self._progress = Progress(state="loading", bytes_done=bytes_done, bytes_total=bytes_total)

    def _end_progress(self, error: str | None) -> None:
        if self._progress is not None and self._progress.state == "loading":
            self._progress = Progress(
                state="loaded" if error is None else "failed",
                bytes_done=self._progress.bytes_total if error is None else self._progress.bytes_done,
                bytes_total=self._progress.bytes_total,
                error=error,
            )
