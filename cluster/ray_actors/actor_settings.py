"""From the config and the machines that are there to what each actor is told. Pure but for the hub's token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.checkpoint.quantization import KINDS
from actors.protocol.settings import DenseSettings, ExchangeSettings, ExpertSettings
from cluster.config.cluster_config import ClusterConfig
from cluster.config.model_source import model_source
from cluster.supervisor.placement.placement import spread_experts

DENSE_LABEL, EXPERT_LABEL, INGRESS_LABEL = "phimoe_dense", "phimoe_expert", "phimoe_ingress"
"""Custom resources of Ray nodes that are meant for one kind of actor (k8s/overlays/gpu gives them to its groups), or for
ingress replicas."""
CPUS_PER_ACTOR = 0.05
"""Claimed so that Ray spreads the actors; their threads are counted by `share_threads`."""
LABEL_SHARE = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """The machines of a Ray cluster."""

    num_nodes: int
    cores_per_node: int
    """Cores of the smallest node."""
    num_gpus: float
    """GPUs of all nodes together."""
    labels: frozenset[str] = frozenset()
    """Names of all resources, custom ones included, that some node has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Threads:
    """Compute threads of each kind of actor."""

    dense: int
    expert: int


def share_threads(num_cores: int, num_dense: int, num_experts: int, num_nodes: int = 1) -> Threads:
    """Threads for nodes of `num_cores` cores each.

    Actors of a kind run side by side and share the cores of their node. Dense actors get half of them where there are
    expert actors: the kinds take turns, but a dense thread that waits awake for its next product takes a core from the
    experts. On two cores one dense thread decodes 1.5 times as fast as two (`cluster/commands/bench/RESULTS.md`, "Which
    threads and cores do actors take?").
    """

    def share(count: int, cores: int) -> int:
        per_node = -(-count // max(1, num_nodes))
        return max(1, cores // max(1, per_node))

    dense_cores = num_cores // 2 if num_experts else num_cores
    return Threads(dense=share(num_dense, dense_cores), expert=share(num_experts, num_cores))


def choose_device(config: ClusterConfig, fleet: Fleet, num_experts: int) -> str:
    """ "cpu" or "cuda"; with auto one that serves what is quantized, cuda where there is a choice.

    Raises ValueError where cuda is asked for, by name or by a quantization that cuda alone serves, and there are not
    enough GPUs.
    """
    wanted = (config.dense_actors + num_experts) * config.gpus_per_actor
    has_gpus = fleet.num_gpus >= wanted
    shortage = f"but the cluster has {fleet.num_gpus:g} GPUs and the actors need {wanted:g}"
    if config.device == "cuda" and not has_gpus:
        raise ValueError(f"device is 'cuda', {shortage}")
    if config.device != "auto":
        return config.device
    if config.dense_quantization is not None:
        return "cpu"
    kind = config.expert_quantization
    devices = ("cpu", "cuda") if kind is None else KINDS[kind].devices
    if has_gpus and "cuda" in devices:
        return "cuda"
    if "cpu" not in devices:
        raise ValueError(f"expert_quantization is {kind!r}, which needs device cuda, {shortage}")
    return "cpu"


def plan_actors(
    config: ClusterConfig, token: str, fleet: Fleet, num_experts: int, device: str | None = None
) -> list[DenseSettings | ExpertSettings]:
    """Settings of every actor, dense ones first. `token` is what ingress replicas show to dense actors.

    `num_experts` is the number of expert actors, which may have been changed since the service began; `device` is the one
    that was chosen then.
    """
    device = device or choose_device(config, fleet, num_experts)
    threads = share_threads(fleet.cores_per_node, config.dense_actors, num_experts, fleet.num_nodes)
    source = model_source(config)
    exchange = ExchangeSettings(
        transport=config.exchange,
        backend=config.link_backend,
        deadline_seconds=config.exchange_deadline_seconds,
        connect_deadline_seconds=config.connect_deadline_seconds,
        late_seconds=config.late_seconds,
        park_deadline_seconds=config.park_deadline_seconds,
        max_rows=config.max_batch_tokens,
    )
    dense = [
        DenseSettings(
            index=index,
            source=source,
            exchange=exchange,
            dtype=config.dtype,
            expert_quantization=config.expert_quantization,
            dense_quantization=config.dense_quantization,
            device=device,
            num_threads=config.dense_threads or threads.dense,
            max_model_len=config.max_model_len,
            max_num_sequences=config.max_num_sequences,
            max_batch_tokens=config.max_batch_tokens,
            max_step_stretch=config.max_step_stretch,
            speculative_tokens=config.speculative_tokens,
            block_size=config.block_size,
            kv_cache_bytes=config.kv_cache_bytes,
            enable_prefix_caching=config.enable_prefix_caching,
            cluster_token=token,
        )
        for index in range(config.dense_actors)
    ]
    experts = [
        ExpertSettings(
            index=index,
            experts=held,
            source=source,
            exchange=exchange,
            dtype=config.dtype,
            expert_quantization=config.expert_quantization,
            device=device,
            num_threads=config.expert_threads or threads.expert,
        )
        for index, held in enumerate(spread_experts(num_experts))
    ]
    return [*dense, *experts]


def bundle(settings: DenseSettings | ExpertSettings, gpus_per_actor: float, fleet: Fleet) -> dict[str, float]:
    """What an actor's place claims of its node: a little CPU, its GPU, and its kind's label where nodes carry it."""
    claims = {"CPU": CPUS_PER_ACTOR}
    if settings.device == "cuda":
        claims["GPU"] = gpus_per_actor
    label = DENSE_LABEL if isinstance(settings, DenseSettings) else EXPERT_LABEL
    if label in fleet.labels:
        claims[label] = LABEL_SHARE
    return claims


def choose_node(
    claims: Mapping[str, float],
    nodes: Mapping[str, Mapping[str, float]],
    num_alike: Mapping[str, int],
    num_actors: Mapping[str, int],
) -> str | None:
    """Where one more actor belongs: of the nodes that could hold it, the one with the fewest of its kind, then of any kind.

    `nodes` are the resources of each node, taken or not; the counts are of actors per node. None where no node could.
    """
    able = [
        node
        for node, resources in nodes.items()
        if all(resources.get(name, 0.0) >= claim for name, claim in claims.items())
    ]
    return min(able, key=lambda node: (num_alike.get(node, 0), num_actors.get(node, 0), node), default=None)
