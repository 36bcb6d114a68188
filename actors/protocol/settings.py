"""The settings of actors: frozen, picklable, and already checked by `cluster.config.cluster_config`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """The source of the weights."""

    model: str | None
    """Directory or name on the hub; None is the embedded tiny model. With load_format "dummy" also the name
    of a preset."""
    load_format: str = "auto"
    """"auto" reads safetensors files, "dummy" makes random weights in the shapes of the model."""
    revision: str | None = None
    cache_dir: str | None = None
    token: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeSettings:
    """How rows travel between dense and expert actors."""

    transport: str = "links"
    """"links", "all_to_all" or "local"."""
    backend: str = "auto"
    """The backend that carries a link: "gloo", "tcp" or "nccl"; "auto" chooses by device."""
    deadline_seconds: float = 30.0
    """Maximum wait for one message during a step; a peer that is silent for longer is dropped."""
    late_seconds: float = 0.15
    """Minimum time after which an answer counts as late; the rows of a late answer are sent to another holder
    of their experts as well. The actual limit is learnt from earlier answers and is at most
    `deadline_seconds`."""
    park_deadline_seconds: float = 120.0
    """Maximum wait of a layer for an expert actor that holds its experts, while none is linked."""
    connect_deadline_seconds: float = 60.0
    """Maximum wait for a link or group to be set up."""
    max_rows: int = 2048
    """Maximum number of rows of one dispatch: the dense actor's token budget per step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseSettings:
    """The settings of one dense actor."""

    index: int
    source: ModelSource
    exchange: ExchangeSettings
    dtype: str = "auto"
    """"auto" (as stored), "bfloat16", "float16" or "float32"."""
    expert_quantization: str | None = None
    """One of `actors.checkpoint.quantization.KINDS`, for experts that this actor computes itself; None means
    as stored."""
    dense_quantization: str | None = None
    """"int8", "int4" or None (as stored), for attention's projections and the head."""
    device: str = "cpu"
    num_threads: int = 1
    max_model_len: int | None = None
    """Maximum length of prompt plus output in tokens; None means the model's own limit."""
    max_num_sequences: int = 64
    """Maximum number of sequences in one step."""
    max_batch_tokens: int = 2048
    """Maximum number of tokens (prefill and decode) in one step."""
    max_step_stretch: float = 2.0
    """A step in which sequences decode may take this many times as long because of the prompts in it."""
    speculative_tokens: int = 0
    """Maximum number of draft tokens per sequence and step; 0 turns speculation off."""
    block_size: int = 16
    """Tokens per KV block."""
    kv_cache_bytes: int | None = None
    """Size of the KV cache; with None the actor chooses it from free memory and `max_model_len`."""
    enable_prefix_caching: bool = True
    """Whether sequences share the KV blocks of prefixes that were computed before."""
    cluster_token: str = ""
    """Secret that an ingress must send when it connects."""
    node_ip: str = "127.0.0.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertSettings:
    """The settings of one expert actor."""

    index: int
    experts: tuple[int, ...]
    source: ModelSource
    exchange: ExchangeSettings
    dtype: str = "auto"
    expert_quantization: str | None = None
    """One of `actors.checkpoint.quantization.KINDS`; None means as stored."""
    device: str = "cpu"
    num_threads: int = 1
    node_ip: str = "127.0.0.1"
