"""What an actor is told when it is created: frozen, picklable, already checked by `cluster.config.cluster_config`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Where the weights come from."""

    model: str | None
    """Directory or hub name; None is the embedded tiny model. With load_format "dummy": a preset's name or directory."""
    load_format: str = "auto"
    """"auto" reads safetensors, "dummy" makes random weights of a preset."""
    revision: str | None = None
    cache_dir: str | None = None
    token: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeSettings:
    """How rows travel between dense and expert actors."""

    transport: str = "links"
    """"links", "all_to_all" or "local"."""
    backend: str = "auto"
    """What carries a link: "gloo", "tcp" or "nccl"; "auto" is chosen by device."""
    deadline_seconds: float = 30.0
    """Longest wait for one message while a step is under way; who is silent for longer is dropped."""
    late_seconds: float = 0.15
    """No answer counts as late before that; a late one's rows go to another holder of their experts as well. Above it,
    what is late is learnt from the answers before; at most `deadline_seconds`."""
    park_deadline_seconds: float = 120.0
    """Longest wait of a layer for an expert actor that holds its experts, while none is linked."""
    connect_deadline_seconds: float = 60.0
    """Longest wait for a link or group to come up."""
    max_rows: int = 2048
    """Most rows that one dispatch may carry; the dense actor's token budget per step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseSettings:
    """One dense actor."""

    index: int
    source: ModelSource
    exchange: ExchangeSettings
    dtype: str = "auto"
    """"auto" (as stored), "bfloat16", "float16" or "float32"."""
    expert_quantization: str | None = None
    """One of `actors.checkpoint.quantization.KINDS`, for experts that this actor computes itself; None is as stored."""
    dense_quantization: str | None = None
    """"int8", for attention's projections and the head; None is as stored."""
    device: str = "cpu"
    num_threads: int = 1
    max_model_len: int | None = None
    """Longest prompt plus output in tokens; None is the model's own limit."""
    max_num_sequences: int = 64
    """Most sequences in one step."""
    max_batch_tokens: int = 2048
    """Most tokens (prefill and decode) in one step."""
    max_step_stretch: float = 2.0
    """How many times as long a step may take for the prompts in it, where other sequences decode."""
    speculative_tokens: int = 0
    """Most guessed tokens of a sequence that a step computes beside its next one; 0 is none."""
    block_size: int = 16
    """Tokens per KV block."""
    kv_cache_bytes: int | None = None
    """Size of the KV cache; None lets the actor choose from free memory and max_model_len."""
    enable_prefix_caching: bool = True
    """Whether sequences share the KV blocks of prefixes that were computed before."""
    cluster_token: str = ""
    """Secret that an ingress shows when it connects."""
    node_ip: str = "127.0.0.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertSettings:
    """One expert actor."""

    index: int
    experts: tuple[int, ...]
    source: ModelSource
    exchange: ExchangeSettings
    dtype: str = "auto"
    expert_quantization: str | None = None
    """One of `actors.checkpoint.quantization.KINDS`; None is as stored."""
    device: str = "cpu"
    num_threads: int = 1
    node_ip: str = "127.0.0.1"
