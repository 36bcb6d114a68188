"""An expert actor: loads its experts, then serves the dense actors that a membership names."""

from __future__ import annotations

import threading
import uuid

import torch

from actors.background_load import Loading
from actors.errors import LinkError, StaleEpochError
from actors.exchange.context import ExchangeContext, ExpertContext
from actors.exchange.transports import ExpertEndpoint, open_expert
from actors.expert.expert_store import ExpertStore
from actors.kernels.threads import share_cores
from actors.linear import product_name
from actors.memory import memory_bytes
from actors.protocol.messages import ActorReport, Membership, Progress
from actors.protocol.settings import ExpertSettings


class ExpertActor:
    """A plain class that the cluster runs as a remote actor. Methods may be called while others run."""

    def __init__(self, settings: ExpertSettings) -> None:
        share_cores(settings.num_threads)
        self.incarnation = uuid.uuid4().hex
        """Unique to this object; a membership names the actor by it."""
        self._settings = settings
        self._device = torch.device(settings.device)
        self._first_experts = settings.experts
        self._loading = Loading(
            "load-experts",
            lambda progress: ExpertStore(settings, self._first_experts, self._device, progress),
        )
        self._guard = threading.Lock()
        """Protects all fields below; held only briefly."""
        self._membership: Membership | None = None
        """The newest membership."""
        self._give_up = threading.Event()
        self._is_stopped = False
        self._joining = threading.Lock()
        """Held while links come up; only its holder changes the field below."""
        self._endpoint: ExpertEndpoint | None = None
        """This actor's end of the exchange; open from the first `join` on."""

    def start_loading(self, experts: tuple[int, ...] | None = None) -> None:
        """Load these experts, by default those of the settings, in a thread; see `progress`.

        A second call does nothing.
        """
        if experts is not None and self._loading.progress().state == "starting":
            self._first_experts = experts
        self._loading.start()

    def progress(self) -> Progress:
        """Progress of the first loading, later of the last `hold`, in stored bytes; with any error."""
        store = self._loading.result
        return (store.progress if store is not None else None) or self._loading.progress()

    def hold(self, experts: tuple[int, ...]) -> None:
        """Load these experts as well, in the background. See `progress`; when loaded, `report` names them.

        Experts that are held already are served meanwhile. Raises LinkError before the first loading has
        ended, and ValueError for an expert that the model does not have.
        """
        self._require_loaded().hold(experts)

    def drop(self, experts: tuple[int, ...]) -> None:
        """Drop these experts; call it once no dense actor asks for them. Memory is freed in the background.

        Raises LinkError before the first loading has ended, and ValueError for an expert that the model does
        not have or if no expert would be left.
        """
        self._require_loaded().drop(experts)

    def join(self, membership: Membership) -> None:
        """Serve a membership; return when all its dense actors are linked. Working links stay.

        Raises StaleEpochError if the epoch is not the highest so far, also if a higher epoch comes while
        links come up. Raises ExchangeError naming the dense actors that were not reached; the others are
        served all the same. Raises ValueError if the membership lacks this actor, or gives it experts it
        lacks.
        """
        store, give_up = self._begin_join(membership)
        with self._joining:
            if give_up.is_set():
                raise StaleEpochError(membership.epoch, self._epoch)
            if self._endpoint is None:
                self._endpoint = open_expert(
                    ExpertContext(
                        exchange_context=self._exchange_context(store),
                        index=self._settings.index,
                        incarnation=self.incarnation,
                        experts=store,
                    )
                )
            self._endpoint.join(membership, give_up)

    def report(self) -> ActorReport:
        """What this actor is and does.

        The state is "starting" before the first membership, "ready" while all dense actors of the newest
        membership are served, else "lost".
        """
        store, membership = self._loading.result, self._membership
        experts = store.experts if store is not None else self._first_experts
        rows = {} if store is None else {expert: int(store.rows_of_expert[expert]) for expert in experts}
        lost = self._lost_links(membership) if membership is not None else ()
        state = "starting" if membership is None else "lost" if lost else "ready"
        return ActorReport(
            device=self._settings.device,
            state=state,
            epoch=self._epoch,
            experts=experts,
            memory_bytes=memory_bytes(self._device),
            lost_links=lost,
            products=product_name(store.dtype, self._device, store.quantization) if store is not None else "",
            rows_of_experts=rows,
        )

    def stop(self) -> None:
        """End all links, also those that are coming up. Idempotent; `join` fails afterwards."""
        with self._guard:
            self._is_stopped = True
            self._give_up.set()
        with self._joining:
            if self._endpoint is not None:
                self._endpoint.close()
            if self._loading.result is not None:
                self._loading.result.release()

    @property
    def _epoch(self) -> int:
        return self._membership.epoch if self._membership is not None else -1

    def _lost_links(self, membership: Membership) -> tuple[str, ...]:
        if self._endpoint is not None:
            return self._endpoint.lost(membership)
        return tuple(f"dense-{dense.index}" for dense in membership.dense)

    def _exchange_context(self, store: ExpertStore) -> ExchangeContext:
        return ExchangeContext(
            settings=self._settings.exchange,
            node_ip=self._settings.node_ip,
            hidden_size=store.hidden_size,
            num_experts=store.num_experts,
            num_choices=store.num_choices,
            dtype=store.dtype,
            device=self._device,
        )

    def _require_loaded(self) -> ExpertStore:
        if self._loading.result is None:
            raise LinkError(f"expert-{self._settings.index}", None, "its weights are not loaded")
        return self._loading.result

    def _begin_join(self, membership: Membership) -> tuple[ExpertStore, threading.Event]:
        """Make this membership the newest, and make an older join give up.

        Returns the experts, and the event that is set when this join must give up.
        """
        with self._guard:
            if membership.epoch <= self._epoch:
                raise StaleEpochError(membership.epoch, self._epoch)
            if self._is_stopped:
                raise LinkError(f"expert-{self._settings.index}", None, "this actor is stopped")
            store = self._require_loaded()
            self._check_place(membership, store)
            self._membership = membership
            self._give_up.set()
            self._give_up = threading.Event()
            return store, self._give_up

    def _check_place(self, membership: Membership, store: ExpertStore) -> None:
        index = self._settings.index
        for member in membership.experts:
            if member.index == index and member.incarnation in ("", self.incarnation):
                if not set(member.experts) <= set(store.experts):
                    break
                return
        raise ValueError(
            f"membership of epoch {membership.epoch} has no expert actor {index} of {store.experts} "
            f"and incarnation {self.incarnation!r}"
        )
