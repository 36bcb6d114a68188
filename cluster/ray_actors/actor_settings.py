"""Chooses the settings of each actor from the config and the machines of the cluster.

Pure, except that the token for the model hub is read from the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.checkpoint.quantization import KINDS
from actors.protocol.settings import DenseSettings, ExchangeSettings, ExpertSettings
from cluster.config.cluster_config import ClusterConfig
from cluster.config.model_source import model_source
from cluster.supervisor.placement.placement import spread_experts

DENSE_LABEL, EXPERT_LABEL, INGRESS_LABEL = "phimoe_dense", "phimoe_expert", "phimoe_ingress"
"""Custom resources of Ray nodes that are meant for one kind of actor or for ingress replicas. For example,
k8s/overlays/gpu gives them to its groups of nodes."""
CPUS_PER_ACTOR = 0.05
"""CPUs that an actor claims, so that Ray spreads the actors. `share_threads` counts their threads."""
LABEL_SHARE = 0.001
"""Amount of a custom resource that each actor or ingress replica claims."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """The machines of a Ray cluster."""

    num_nodes: int
    cores_per_node: int
    """Cores of the node with the fewest."""
    num_gpus: float
    """Number of GPUs of all nodes together."""
    labels: frozenset[str] = frozenset()
    """Names of all resources that some node has, custom resources included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Threads:
    """Number of compute threads of each actor, by kind."""

    dense: int
    expert: int


def share_threads(num_cores: int, num_dense: int, num_experts: int, num_nodes: int = 1) -> Threads:
    """Return the threads of actors on nodes of `num_cores` cores each.

    Actors of a kind run side by side and share the cores of their node. If there are expert actors, the dense
    actors share half of the cores. The two kinds compute alternately, but a dense thread that spins until its
    next product takes a core from the experts. On two cores one dense thread decodes 1.5 times as fast as two
    (`cluster/commands/bench/RESULTS.md`, "Which threads and cores do actors take?").
    """

    def share(count: int, cores: int) -> int:
        per_node = -(-count // max(1, num_nodes))
        return max(1, cores // max(1, per_node))

    dense_cores = num_cores // 2 if num_experts else num_cores
    return Threads(dense=share(num_dense, dense_cores), expert=share(num_experts, num_cores))


def choose_device(config: ClusterConfig, fleet: Fleet, num_experts: int) -> str:
    """Return "cpu" or "cuda".

    With device auto, return cuda if the quantization and the number of GPUs allow it.

    Raises ValueError if there are too few GPUs for device cuda or for a quantization that only cuda supports.
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
    """Return the settings of every actor, first the dense actors, then the expert actors.

    `token` is the token with which ingress replicas identify themselves to dense actors. `num_experts` is the
    number of expert actors, which may have changed since the service started. `device` is the device that was
    chosen then, or None at the start.
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
    """Return the resources that an actor claims: a little CPU, its GPU, and its label if some node has it."""
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
    """Return the node for one more actor, or None if no node has the resources.

    Of the nodes that could hold the actor, choose the node with the fewest actors of its kind, and among
    equals the node with the fewest actors of any kind. `nodes` are the total resources of each node,
    `num_alike` and `num_actors` the actors per node.
    """
    able = [
        node
        for node, resources in nodes.items()
        if all(resources.get(name, 0.0) >= claim for name, claim in claims.items())
    ]
    return min(able, key=lambda node: (num_alike.get(node, 0), num_actors.get(node, 0), node), default=None)
