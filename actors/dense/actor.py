"""A dense actor: it loads the dense weights, starts to listen, then computes over the expert actors of its
membership."""

from __future__ import annotations

import threading
import uuid

import torch

from actors.background_load import Loading
from actors.checkpoint.config import NUM_EXPERTS, ModelConfig
from actors.checkpoint.layout import all_tensors, dense_tensor_names
from actors.checkpoint.open import open_model
from actors.checkpoint.read_quantized import dense_quantization, serving_quantization
from actors.checkpoint.weights import ProgressCallback, read_dense, serving_dtype
from actors.dense.engine import Engine
from actors.dense.ingress_server import IngressServer
from actors.dense.kv_cache import KVCache, bytes_per_token
from actors.dense.model import DenseModel
from actors.dense.scheduling.block_pool import BlockPool
from actors.dense.scheduling.kv_capacity import Demand, free_cache_bytes, plan_capacity
from actors.dense.scheduling.prefill_budget import PrefillBudget
from actors.dense.scheduling.scheduler import Scheduler, SchedulerLimits
from actors.errors import LinkError, StaleEpochError
from actors.exchange.context import DenseContext, ExchangeContext
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.rendezvous import host_store
from actors.exchange.transports import DenseEndpoint, has_expert_actors, open_dense
from actors.expert.experts import GroupedExperts
from actors.kernels.threads import share_cores
from actors.linear import product_name
from actors.memory import memory_bytes, release_free_memory
from actors.protocol.messages import ActorReport, Membership, PrefixRule, Progress
from actors.protocol.settings import DenseSettings


class DenseActor:
    """The dense actor as a plain class; the cluster makes a remote actor of it. Every method may be called
    while another one runs."""

    def __init__(self, settings: DenseSettings) -> None:
        share_cores(settings.num_threads)
        self._settings = settings
        self._loading = Loading("load-dense", lambda progress: _Loaded(settings, progress))
        self._guard = threading.Lock()
        """Guards the fields below; it is held only for moments."""
        self.incarnation = uuid.uuid4().hex
        """Unique id of this object; a membership names actors by it."""
        self._address: tuple[str, int, str, int] | None = None
        self._epoch = -1
        self._give_up = threading.Event()
        self._is_stopped = False
        self._joining = threading.Lock()
        """Held while the actor starts to listen, joins a membership or stops."""

    def start_loading(self) -> None:
        """Load in a thread; `progress` tells how much is done. A second call does nothing."""
        self._loading.start()

    def progress(self) -> Progress:
        """The progress of loading in bytes as stored. After "failed", which comes with the reason, it no
        longer changes."""
        return self._loading.progress()

    def listen(self) -> tuple[str, int, str, int]:
        """Return host and port for ingress connections, then host and port of the store through which links
        are set up.

        The first call opens both. Raises LinkError before the weights are loaded.
        """
        with self._joining:
            if self._address is None:
                self._address = self._require_loaded().listen(self._settings, self.incarnation)
            return self._address

    def join(self, membership: Membership) -> None:
        """Compute over a membership's expert actors. Return when all of them are linked and in use.

        Links that work stay, and running sequences go on all the time.

        With a transport of links, raises DeadlineError naming the expert actors that did not come within the
        connect deadline. The others are in use all the same; a later membership that names the late actors
        again uses them too.

        The collective transport is made new each time. After an error the old one goes on if it still can.

        Raises StaleEpochError if the epoch is not higher than every earlier one, or if a higher one comes
        while the links of this one are being set up.
        """
        loaded, give_up = self._begin_join(membership)
        with self._joining:
            if give_up.is_set():
                raise StaleEpochError(membership.epoch, self._epoch)
            assert loaded.endpoint is not None
            loaded.endpoint.join(membership, give_up)

    def report(self) -> ActorReport:
        """The actor's present state, which is "ready" while sequences would be computed, and "lost" if some
        expert cannot be reached."""
        loaded = self._loading.result
        engine = loaded.engine if loaded is not None else None
        endpoint = loaded.endpoint if loaded is not None else None
        is_ready = engine is not None and engine.is_ready
        return ActorReport(
            device=self._settings.device,
            state="ready" if is_ready else "starting" if self._epoch < 0 else "lost",
            epoch=self._epoch,
            experts=() if has_expert_actors(self._settings.exchange.transport) else tuple(range(NUM_EXPERTS)),
            memory_bytes=memory_bytes(torch.device(self._settings.device)),
            lost_links=endpoint.lost() if endpoint is not None else (),
            suspected_links=endpoint.suspected() if endpoint is not None else (),
            expert_load=loaded.load.rows() if loaded is not None else (),
            products=loaded.products if loaded is not None else "",
            load=engine.load if engine is not None else None,
            counters=engine.counters if engine is not None else None,
        )

    def stop(self) -> None:
        """End the engine, its links and all ingress connections. Idempotent. The actor cannot join a
        membership afterwards."""
        with self._guard:
            self._is_stopped = True
            self._give_up.set()
            loaded = self._loading.result
        with self._joining:
            if loaded is not None:
                loaded.close()

    def _require_loaded(self) -> _Loaded:
        if self._loading.result is None:
            raise LinkError(f"dense-{self._settings.index}", None, "its weights are not loaded")
        return self._loading.result

    def _begin_join(self, membership: Membership) -> tuple[_Loaded, threading.Event]:
        """Make this the newest epoch, and end the wait of an older join."""
        with self._guard:
            name = f"dense-{self._settings.index}"
            if membership.epoch <= self._epoch:
                raise StaleEpochError(membership.epoch, self._epoch)
            if self._is_stopped:
                raise LinkError(name, None, "this actor is stopped")
            if self._address is None:
                raise LinkError(name, None, "it does not listen yet")
            loaded = self._require_loaded()
            self._epoch = membership.epoch
            self._give_up.set()
            self._give_up = threading.Event()
            return loaded, self._give_up


class _Loaded:
    """The model on its device, with the engine and the ingress server around it."""

    def __init__(self, settings: DenseSettings, progress: ProgressCallback) -> None:
        exchange, device = settings.exchange, torch.device(settings.device)
        is_local = not has_expert_actors(exchange.transport)
        config, reader = open_model(settings.source, all_tensors if is_local else dense_tensor_names)
        dtype = serving_dtype(settings.dtype, config)
        meter = _TwoParts(progress)
        quantized = dense_quantization(settings.dense_quantization, config, device)
        model = DenseModel(config, read_dense(reader, config, dtype, device, meter.first), quantized)
        quantization = (
            serving_quantization(settings.expert_quantization, config, device) if is_local else None
        )
        experts = range(config.num_experts)
        self._local = (
            GroupedExperts.load(reader, config, experts, dtype, device, meter.second, quantization)
            if is_local
            else None
        )
        self._config, self._dtype, self._device = config, dtype, device
        self.products = product_name(dtype, device, quantized)
        if quantization is not None:
            self.products += f", experts {product_name(dtype, device, quantization)}"
        self.endpoint: DenseEndpoint | None = None
        """The dense end of the exchange; None before `listen`."""
        self.load = ExpertLoad(config.num_experts)
        self._make_engine(settings, config, model)
        release_free_memory()

    def _make_engine(self, settings: DenseSettings, config: ModelConfig, model: DenseModel) -> None:
        demand = Demand(
            model_limit=config.max_position_embeddings,
            max_model_len=settings.max_model_len,
            max_num_sequences=settings.max_num_sequences,
            block_size=settings.block_size,
            bytes_per_token=bytes_per_token(config, self._dtype),
        )
        fixed = settings.kv_cache_bytes
        cache_bytes = free_cache_bytes(self._device) if fixed is None else fixed
        capacity = plan_capacity(demand, cache_bytes, is_fixed=fixed is not None)
        limits = SchedulerLimits(
            max_num_sequences=settings.max_num_sequences,
            max_batch_tokens=settings.max_batch_tokens,
            long_rope_threshold=config.rope.original_max_position_embeddings,
        )
        pool = BlockPool(capacity.num_blocks, settings.block_size, settings.enable_prefix_caching)
        scheduler = Scheduler(limits, pool)
        cache = KVCache(config, capacity.num_blocks, settings.block_size, self._dtype, self._device)
        rule = PrefixRule(block_size=settings.block_size, long_rope_threshold=limits.long_rope_threshold)
        self.ingress_server = IngressServer(
            settings.cluster_token,
            capacity.max_model_len,
            rule if settings.enable_prefix_caching else None,
        )
        prefill_budget = PrefillBudget(settings.max_step_stretch, settings.max_batch_tokens)
        park_seconds = settings.exchange.park_deadline_seconds
        self.engine = Engine(
            model,
            cache,
            scheduler,
            self.ingress_server.emit,
            prefill_budget,
            park_seconds,
            settings.speculative_tokens,
        )

    def listen(self, settings: DenseSettings, incarnation: str) -> tuple[str, int, str, int]:
        store, store_host, store_port = host_store(settings.node_ip)
        self.endpoint = open_dense(
            DenseContext(
                exchange_context=self._exchange_context(settings),
                index=settings.index,
                incarnation=incarnation,
                store=store,
                load=self.load,
                experts=self._local,
                use_exchange=self.engine.use_exchange,
                on_change=self.engine.wake,
            )
        )
        ingress_host, ingress_port = self.ingress_server.start(self.engine, settings.node_ip)
        self.engine.start()
        return ingress_host, ingress_port, store_host, store_port

    def close(self) -> None:
        if self.endpoint is not None:
            self.endpoint.close()
        self.engine.stop()
        self.ingress_server.stop()

    def _exchange_context(self, settings: DenseSettings) -> ExchangeContext:
        return ExchangeContext(
            settings=settings.exchange,
            node_ip=settings.node_ip,
            hidden_size=self._config.hidden_size,
            num_experts=self._config.num_experts,
            num_choices=self._config.num_experts_per_token,
            dtype=self._dtype,
            device=self._device,
        )


class _TwoParts:
    """Joins the progress of two loads into one. The second load may not happen."""

    def __init__(self, report: ProgressCallback) -> None:
        self._report = report
        self._first = (0, 0)

    def first(self, bytes_done: int, bytes_total: int) -> None:
        self._first = (bytes_done, bytes_total)
        self._report(bytes_done, bytes_total)

    def second(self, bytes_done: int, bytes_total: int) -> None:
        self._report(self._first[0] + bytes_done, self._first[1] + bytes_total)
