"""The experts that an actor holds, and how that changes while it serves.

    wanted    what it was last told to hold      hold and drop change it at once
    held      what it computes                   follows in the background, layer by layer

Only growing shows as "loading": what is dropped is no longer asked for, and its memory comes back when it does.
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
    """Loaded when it is made. Raises CheckpointError as `open_model` does."""

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
        """One of KINDS, or None."""
        self.rows_of_expert = np.zeros(config.num_experts, dtype=np.int64)
        self._settings, self._device = settings, device
        self._claim = CoreClaim(settings.num_threads) if device.type == "cpu" else None
        self._experts = GroupedExperts.load(
            reader, config, experts, self.dtype, device, progress, self.quantization
        )
        self._guard = threading.Lock()
        """Of the fields below; held for moments only."""
        self._wanted = frozenset(experts)
        self._reported = frozenset(experts)
        self._is_changing = False
        self._progress: Progress | None = None
        self._tables: ServeTables | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called when what `tables` gave is about to be outdated."""

    @property
    def experts(self) -> tuple[int, ...]:
        """Held in every layer and not dropped, ascending."""
        with self._guard:
            return tuple(sorted(self._reported))

    @property
    def progress(self) -> Progress | None:
        """Of the last `hold`; None before the first."""
        with self._guard:
            return self._progress

    def hold(self, experts: Iterable[int]) -> None:
        """Load these in addition. Raises ValueError for one that the model does not have."""
        wanted = self._checked(experts)
        with self._guard:
            self._wanted |= wanted
            if self._wanted <= self._reported:
                self._progress = Progress(state="loaded", bytes_done=0, bytes_total=0)
                return
            self._progress = Progress(state="loading", bytes_done=0, bytes_total=0)
            self._begin_change()

    def drop(self, experts: Iterable[int]) -> None:
        """Forget these. Raises ValueError for one that the model does not have, and when none would be left."""
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
        """Leave the cores to others; the weights go with this object."""
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
        # Shifted by one, since an id of -1 is nobody's.
        counts = np.bincount(expert_ids.numpy().reshape(-1) + 1, minlength=self.num_experts + 1)[1:]
        lacking = [expert for expert in np.flatnonzero(counts).tolist() if expert not in held.experts]
        if lacking:
            raise NotHeldError(lacking)
        ids, scales = expert_ids.to(self._device), weights.to(self._device)
        results = held.forward(rows, ids, scales, num_results)
        self.rows_of_expert += counts
        return results

    def tables(self) -> ServeTables | None:
        """What `serve` computes with, for the kernels and the thread that calls; they take it as it was until it is asked
        for again. None where they do not suit, and while experts are added or dropped."""
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
        """Until what is held is what is wanted."""
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
                    # What it holds for certain; the next order to hold or drop tries again.
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
