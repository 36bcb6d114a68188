"""An expert actor: loads its experts once, then serves whoever the membership names, epoch after epoch."""

from __future__ import annotations

import os
import threading

import numpy as np
import torch

from actors.checkpoint.layout import expert_tensors
from actors.checkpoint.open import open_model
from actors.checkpoint.weights import ProgressCallback, serving_dtype
from actors.errors import LinkError, StaleEpochError
from actors.exchange.open import Server, Site, open_expert
from actors.expert.cores import CoreClaim
from actors.expert.experts import GroupedExperts
from actors.loading import Loading
from actors.memory import memory_bytes
from actors.messages import ActorReport, Membership, Progress
from actors.settings import ExpertSettings


class ExpertActor:
    """A plain class: the cluster makes a remote actor of it. Every method may be called while another one runs."""

    def __init__(self, settings: ExpertSettings) -> None:
        torch.set_num_threads(settings.num_threads)
        self._settings = settings
        self._device = torch.device(settings.device)
        self._loading = Loading("load-experts", lambda progress: _Loaded(settings, self._device, progress))
        self._guard = threading.Lock()
        """Of all fields below; held for moments only."""
        self._epoch = -1
        self._give_up = threading.Event()
        self._server: Server | None = None
        self._is_stopped = False
        self._joining = threading.Lock()
        """Held while links come up; only its holder changes the server."""

    def start_loading(self) -> None:
        """Load in a thread; `progress` says how far it is. A second call does nothing."""
        self._loading.start()

    def progress(self) -> Progress:
        """In stored bytes. "failed" comes with the reason and stays."""
        return self._loading.progress()

    def join(self, membership: Membership) -> None:
        """Serve a membership in place of the one before; returns when all its dense actors are linked.

        Raises StaleEpochError for an epoch that is not higher than any before, also when a higher one comes while this
        one's links are coming up; ExchangeError when a dense actor does not come; ValueError for a membership that this
        actor is not in. After an error it serves nobody until the next join.
        """
        loaded, give_up = self._begin_join(membership)
        with self._joining:
            if give_up.is_set():
                raise StaleEpochError(membership.epoch, self._epoch)
            if self._server is not None:
                self._server.close()
                self._server = None
            site = Site(
                settings=self._settings.exchange,
                node_ip=self._settings.node_ip,
                hidden_size=loaded.hidden_size,
                num_experts=loaded.num_experts,
                num_choices=loaded.num_choices,
                dtype=loaded.dtype,
                device=self._device,
                stop=give_up,
            )
            self._server = open_expert(site, self._settings.index, membership, loaded.serve)

    def report(self) -> ActorReport:
        """State "ready" while all dense actors are being served, "lost" when one's link has ended."""
        server, loaded = self._server, self._loading.result
        state = "starting" if server is None else "ready" if server.is_up else "lost"
        detail: dict[str, float | int | str] = {}
        if loaded is not None:
            for expert in self._settings.experts:
                detail[f"rows_of_expert_{expert}"] = int(loaded.rows_of_expert[expert])
        if server is not None and server.failure is not None:
            detail["failure"] = str(server.failure)
        return ActorReport(
            kind="expert",
            index=self._settings.index,
            pid=os.getpid(),
            node_ip=self._settings.node_ip,
            device=self._settings.device,
            state=state,
            epoch=self._epoch,
            experts=self._settings.experts,
            memory_bytes=memory_bytes(self._device),
            detail=detail,
        )

    def stop(self) -> None:
        """End all links, also those that are coming up. Idempotent; nothing can be joined afterwards."""
        with self._guard:
            self._is_stopped = True
            self._give_up.set()
        with self._joining:
            if self._server is not None:
                self._server.close()
            if self._loading.result is not None:
                self._loading.result.release()

    def _begin_join(self, membership: Membership) -> tuple[_Loaded, threading.Event]:
        """Make this the newest epoch and end the wait of an older join."""
        index, experts = self._settings.index, self._settings.experts
        if not any(member.index == index and member.experts == experts for member in membership.experts):
            raise ValueError(
                f"membership of epoch {membership.epoch} has no expert actor {index} of {experts}"
            )
        with self._guard:
            if membership.epoch <= self._epoch:
                raise StaleEpochError(membership.epoch, self._epoch)
            if self._is_stopped:
                raise LinkError(f"expert-{index}", None, "this actor is stopped")
            if self._loading.result is None:
                raise LinkError(f"expert-{index}", None, "its weights are not loaded")
            self._epoch = membership.epoch
            self._give_up.set()
            self._give_up = threading.Event()
            return self._loading.result, self._give_up


class _Loaded:
    """The experts of an actor, and how many rows each has seen."""

    def __init__(self, settings: ExpertSettings, device: torch.device, progress: ProgressCallback) -> None:
        config, reader = open_model(settings.source, lambda config: expert_tensors(config, settings.experts))
        self.hidden_size = config.hidden_size
        self.num_experts = config.num_experts
        self.num_choices = config.num_experts_per_token
        self.dtype = serving_dtype(settings.dtype, config)
        self.rows_of_expert = np.zeros(config.num_experts, dtype=np.int64)
        self._device = device
        self._claim = CoreClaim(settings.num_threads) if device.type == "cpu" else None
        self._experts = GroupedExperts.load(reader, config, settings.experts, self.dtype, device, progress)

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
        """See `exchange.serve_links.Serve`; calls come one at a time."""
        if self._claim is not None:
            self._claim.settle()
        ids, scales = expert_ids.to(self._device), weights.to(self._device)
        results = self._experts.forward(layer, rows, ids, scales, num_results)
        # Shifted by one, since an id of -1 is nobody's.
        counts = np.bincount(expert_ids.numpy().reshape(-1) + 1, minlength=self.num_experts + 1)
        self.rows_of_expert += counts[1:]
        return results
