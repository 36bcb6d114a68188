"""ClusterConfig, which holds all settings of a service.

    YAML file  --read_yaml-->  mapping  --+
    flags      --add_flags-->  mapping  --+--from_mapping-->  ClusterConfig (checked, frozen)
    Serve args ------------->  mapping  --+

Every field is a key of the file and, with dashes, a flag of `phimoe serve`; `cluster.config.sources` reads
both.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from actors.checkpoint.config import NUM_EXPERTS
from actors.checkpoint.quantization import DENSE_DEVICES, KINDS, check_device
from cluster.config.request_limits import Limits

EXCHANGES = ("links", "all_to_all", "local")
"""The names in `actors.exchange.transports.TRANSPORTS`. They are copied, since that module imports torch."""

EMBEDDED_MODEL_NAME = "phimoe-tiny"
"""Name of the embedded model unless another name is given."""

_LIMITS = Limits()
"""The defaults of the limits on requests."""


def _option(
    default: object,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    actors: bool = False,
) -> typing.Any:
    """Return a field with its help text and range.

    `actors`: running actors are replaced when the field changes.
    """
    return field(
        default=default,
        metadata={"help": help, "choices": choices, "low": low, "high": high, "actors": actors},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """The settings of one service: model, actors and listeners.

    Raises ValueError that names field and value.
    """

    model: str | None = _option(
        None,
        "checkpoint directory, hub name, or preset with load_format dummy; none uses the embedded tiny model",
        actors=True,
    )
    load_format: str = _option(
        "auto",
        "auto reads safetensors; dummy makes random weights for a preset",
        choices=("auto", "dummy"),
        actors=True,
    )
    revision: str | None = _option(None, "branch, tag or commit of a hub model", actors=True)
    cache_dir: str | None = _option(None, "directory in which downloaded models are kept", actors=True)
    served_model_name: str | None = _option(None, "name that clients use; none means the model's own name")
    expert_actors: int | None = _option(
        None,
        "number of expert actors; none means 2, or 0 with exchange local",
        low=0,
        high=NUM_EXPERTS,
        actors=True,
    )
    dense_actors: int = _option(1, "number of dense actors", low=1, high=64, actors=True)
    expert_replicas: int = _option(
        1, "number of expert actors that hold each expert", low=1, high=NUM_EXPERTS, actors=True
    )
    redundant_slots: int = _option(
        0,
        "number of further experts that each expert actor holds: replicas of the most loaded experts",
        low=0,
        high=NUM_EXPERTS,
        actors=True,
    )
    rebalance_interval_seconds: float = _option(
        0.0,
        "rebalance without a command once it has been worth it for this time; 0 means only on command",
        low=0,
    )
    rebalance_threshold: float = _option(
        0.1, "part of the expert actors' time that a rebalance must save to be worth it", low=0.01, high=1
    )
    hung_after_seconds: float = _option(
        2.0, "an actor that gives no sign of life for this time is killed and started again", low=0.2
    )
    replace_after_seconds: float = _option(
        20.0,
        "experts of an actor that is away for this time go to the others until it is back; 0 means never",
        low=0,
    )
    exchange: str = _option(
        "links",
        "how rows travel between dense and expert actors",
        choices=EXCHANGES,
        actors=True,
    )
    link_backend: str = _option(
        "auto",
        "what carries the bytes of a link; auto chooses by device",
        choices=("auto", "gloo", "tcp", "nccl"),
        actors=True,
    )
    dtype: str = _option(
        "auto",
        "type of the weights; auto means as stored",
        choices=("auto", "bfloat16", "float16", "float32"),
        actors=True,
    )
    expert_quantization: str | None = _option(
        None,
        "quantization of the experts' matrices: int8, int4 (cpu only), fp8 (cuda only); none means as stored",
        choices=tuple(KINDS),
        actors=True,
    )
    dense_quantization: str | None = _option(
        None,
        "quantization of attention's projections and the head: int8 or int4 (cpu only); none means as stored",
        choices=tuple(name for name, kind in KINDS.items() if "cpu" in kind.devices),
        actors=True,
    )
    device: str = _option(
        "auto",
        "auto chooses cuda if the cluster has a GPU for every actor and the quantization allows it, else cpu",
        choices=("auto", "cpu", "cuda"),
        actors=True,
    )
    gpus_per_actor: float = _option(
        1.0, "number of GPUs, or part of a GPU, that each actor claims on cuda", low=0.01, high=8, actors=True
    )
    max_model_len: int | None = _option(
        None, "longest prompt plus output in tokens; none means the model's limit", low=1, actors=True
    )
    max_num_sequences: int = _option(64, "most sequences in one step", low=1, high=65536, actors=True)
    max_batch_tokens: int = _option(2048, "most tokens in one step", low=1, actors=True)
    max_step_stretch: float = _option(
        2.0,
        "how many times as long prompts may make a step in which other sequences decode",
        low=1.1,
        high=100,
        actors=True,
    )
    speculative_tokens: int = _option(
        0,
        "most tokens of a sequence that are guessed from its text and checked in one step; 0 means none",
        low=0,
        high=64,
        actors=True,
    )
    block_size: int = _option(16, "tokens per KV block", low=1, high=1024, actors=True)
    kv_cache_bytes: int | None = _option(
        None, "size of the KV cache; none means chosen by free memory", low=1, actors=True
    )
    enable_prefix_caching: bool = _option(
        True, "sequences share the KV blocks of prefixes that were computed before", actors=True
    )
    dense_threads: int | None = _option(
        None, "threads of each dense actor; none means chosen by cores", low=1, high=1024, actors=True
    )
    expert_threads: int | None = _option(
        None, "threads of each expert actor; none means chosen by cores", low=1, high=1024, actors=True
    )
    exchange_deadline_seconds: float = _option(
        30.0, "longest wait of a step for one message of the exchange", low=0.01, actors=True
    )
    late_seconds: float = _option(
        0.15,
        "shortest wait before an expert actor counts as late and its rows also go to another holder",
        low=0.001,
        actors=True,
    )
    park_deadline_seconds: float = _option(
        120.0, "longest wait of a step for an expert that no actor holds at present", low=0.1, actors=True
    )
    connect_deadline_seconds: float = _option(
        60.0, "longest wait for a link to come up", low=0.01, actors=True
    )
    load_deadline_seconds: float = _option(
        7200.0, "longest time an actor may take to load its weights", low=1
    )
    request_deadline_seconds: float = _option(
        600.0, "longest time a request may take from its arrival to its last token", low=0.1
    )
    resume_deadline_seconds: float = _option(
        60.0, "how long a request waits for a lost dense actor to come back", low=0
    )
    max_waiting_requests: int = _option(
        1024, "most requests under way per ingress replica; further ones are answered with 429", low=1
    )
    max_waiting_tokens: int = _option(
        4 * 1024 * 1024,
        "most prompt tokens under way per ingress replica; further requests are answered with 429",
        low=1,
    )
    dense_silence_seconds: float = _option(
        0.6,
        "a dense actor that sends nothing for this time counts as hung; irregular heartbeats extend the time",
        low=0.3,
    )
    drain_grace_seconds: float = _option(
        30.0, "how long running requests may go on when the service is told to end", low=0, high=3600
    )
    max_body_bytes: int = _option(8 * 1024 * 1024, "size of the largest HTTP body and gRPC message", low=1)
    body_timeout_seconds: float = _option(60.0, "longest time that an HTTP body may take to arrive", low=0.1)
    header_timeout_seconds: int = _option(
        10, "longest time that the header of an HTTP request may take to arrive", low=1, high=3600
    )
    max_header_bytes: int = _option(
        16384, "size of the largest header of an HTTP request", low=16384, high=1 << 20
    )
    max_requests_per_key: int = _option(
        256, "most requests under way per API key and ingress replica; further ones get 429", low=1
    )
    max_prompt_tokens: int | None = _option(
        _LIMITS.max_prompt_tokens, "longest prompt in tokens; none means the model's context", low=1
    )
    max_prompt_chars: int = _option(
        _LIMITS.max_prompt_chars, "most characters of a prompt or conversation", low=1
    )
    max_prompts: int = _option(_LIMITS.max_prompts, "most prompts of one request", low=1)
    max_messages: int = _option(_LIMITS.max_messages, "most messages of a conversation", low=1)
    max_n: int = _option(_LIMITS.max_n, "most choices per prompt (n)", low=1)
    max_choices: int = _option(_LIMITS.max_choices, "most prompts times n of one request", low=1)
    max_logprobs: int = _option(
        _LIMITS.max_logprobs, "most alternatives per token (logprobs, top_logprobs)", low=0
    )
    max_stop_strings: int = _option(_LIMITS.max_stop_strings, "most stop strings", low=1)
    max_stop_chars: int = _option(_LIMITS.max_stop_chars, "most characters of a stop string", low=1)
    max_stop_token_ids: int = _option(_LIMITS.max_stop_token_ids, "most stop token ids", low=1)
    max_logit_bias: int = _option(_LIMITS.max_logit_bias, "most entries of logit_bias", low=1)
    api_keys_file: str | None = _option(
        None, "file with the API keys of clients, one per line, name:key or key; also PHIMOE_API_KEYS"
    )
    admin_keys_file: str | None = _option(
        None, "file with the keys of operators, in the same form; also PHIMOE_ADMIN_KEYS"
    )
    tls_cert_file: str | None = _option(
        None, "PEM file with the certificate chain; with it HTTP and gRPC are served only over TLS"
    )
    tls_key_file: str | None = _option(None, "PEM file with the certificate's private key")
    grpc_tls_port: int = _option(
        9443, "gRPC port with TLS, used instead of grpc_port with a certificate", low=1, high=65535
    )
    ingress_replicas: int = _option(1, "number of ingress replicas", low=1, high=256)
    host: str = _option("127.0.0.1", "address on which HTTP and gRPC listen")
    port: int = _option(8000, "HTTP port", low=1, high=65535)
    grpc_port: int = _option(9000, "gRPC port", low=1, high=65535)
    proxy: str = _option(
        "auto",
        "what Ray Serve listens with; auto means haproxy if it is installed, else python",
        choices=("auto", "haproxy", "python"),
    )
    address: str | None = _option(
        None, "Ray cluster to join (host:port or auto); none starts a local cluster"
    )
    dashboard: bool = _option(False, "start Ray's dashboard with a local cluster")

    def __post_init__(self) -> None:
        hints = field_types()
        for item in fields(self):
            _check_field(item.name, getattr(self, item.name), hints[item.name], item.metadata)
        if self.exchange == "local" and self.expert_actors not in (None, 0):
            raise ValueError(
                f"expert_actors is {self.expert_actors}, but exchange local has none: leave it out"
            )
        if self.exchange != "local" and self.expert_actors == 0:
            raise ValueError(f"expert_actors is 0, but exchange {self.exchange} needs 1 to {NUM_EXPERTS}")
        if self.expert_replicas > max(1, self.num_expert_actors):
            raise ValueError(
                f"expert_replicas is {self.expert_replicas}, expected at most "
                f"{max(1, self.num_expert_actors)}, the number of expert actors"
            )
        if self.expert_quantization is not None and self.device != "auto":
            subject = f"expert_quantization is {self.expert_quantization!r}"
            check_device(subject, KINDS[self.expert_quantization].devices, self.device)
        self._check_dense_quantization()
        if self.port == self.grpc_port:
            raise ValueError(f"grpc_port is {self.grpc_port}, the same as port")
        self._check_tls()
        if self.load_format == "dummy" and self.model is None:
            raise ValueError("model is none, but load_format dummy needs a preset (tiny, mid, phi-3.5-moe)")

    def _check_dense_quantization(self) -> None:
        if self.dense_quantization is None:
            return
        subject = f"dense_quantization is {self.dense_quantization!r}"
        if self.device != "auto":
            check_device(subject, DENSE_DEVICES, self.device)
        kind = self.expert_quantization
        if kind is not None and "cpu" not in KINDS[kind].devices:
            raise ValueError(
                f"{subject}, which needs device cpu, but expert_quantization {kind!r} needs cuda"
            )

    def _check_tls(self) -> None:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            missing = "tls_cert_file" if self.tls_cert_file is None else "tls_key_file"
            raise ValueError(f"{missing} is none, but TLS needs both tls_cert_file and tls_key_file")
        if self.has_tls and self.proxy == "haproxy":
            raise ValueError("proxy is 'haproxy', which Ray Serve starts without TLS: leave one of them out")
        if self.has_tls and self.grpc_tls_port == self.port:
            raise ValueError(f"grpc_tls_port is {self.grpc_tls_port}, the same as port")

    @property
    def has_tls(self) -> bool:
        """Whether HTTP and gRPC are served over TLS."""
        return self.tls_cert_file is not None

    @property
    def num_expert_actors(self) -> int:
        """The number of expert actors with which the service starts."""
        if self.exchange == "local":
            return 0
        return 2 if self.expert_actors is None else self.expert_actors

    @property
    def model_id(self) -> str:
        """The name by which clients ask for the model."""
        if self.served_model_name is not None:
            return self.served_model_name
        if self.model is None:
            return EMBEDDED_MODEL_NAME
        return Path(self.model).name if Path(self.model).is_dir() else self.model

    def actor_hash(self) -> str:
        """Return a hash that is equal for two configs whose actors are interchangeable, in hex."""
        chosen = {item.name: getattr(self, item.name) for item in fields(self) if item.metadata["actors"]}
        chosen["expert_actors"] = self.num_expert_actors
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    def to_mapping(self) -> dict[str, object]:
        """Return the keys that differ from their defaults. `from_mapping` turns them into an equal config."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) != item.default
        }


def from_mapping(mapping: Mapping[str, object]) -> ClusterConfig:
    """Return a checked config.

    Raises ValueError for an unknown key; the message names the closest known key.
    """
    known = field_types()
    for key in mapping:
        if key not in known:
            raise ValueError(f"unknown key {key!r}{_closest(str(key), known)}")
    return ClusterConfig(**dict(mapping))  # type: ignore[arg-type]


def field_types() -> dict[str, typing.Any]:
    """Return a mapping from the name of each key to its type, in the order of the fields."""
    return typing.get_type_hints(ClusterConfig)


def _check_field(name: str, value: object, hint: object, metadata: Mapping[str, typing.Any]) -> None:
    if value is None and _is_optional(hint):
        return
    base = base_type(hint)
    is_number = base is float and isinstance(value, int) and not isinstance(value, bool)
    if not (isinstance(value, base) or is_number) or (base is int and isinstance(value, bool)):
        raise ValueError(f"{name} is {value!r}, expected {_words(base)}")
    if metadata["choices"] and value not in metadata["choices"]:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(metadata['choices'])}")
    low, high = metadata["low"], metadata["high"]
    if isinstance(value, int | float) and (
        (low is not None and not value >= low) or (high is not None and value > high)
    ):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} is {value!r}, expected {bounds}")
    if value == "":
        raise ValueError(f"{name} is empty, expected a name")


def _is_optional(hint: object) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def base_type(hint: object) -> type:
    """Return the type of a key without None."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    assert isinstance(hint, type)
    return hint


def _words(base: type) -> str:
    return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[base]


def _closest(key: str, known: typing.Iterable[str]) -> str:
    matches = difflib.get_close_matches(key.replace("-", "_"), list(known), n=1, cutoff=0.0)
    return f"; the closest known key is {matches[0]!r}" if matches else ""
