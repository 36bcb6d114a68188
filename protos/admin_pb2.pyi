from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ("max_silence_seconds",)
    MAX_SILENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    max_silence_seconds: float
    def __init__(self, max_silence_seconds: _Optional[float] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("grace_seconds",)
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    grace_seconds: float
    def __init__(self, grace_seconds: _Optional[float] = ...) -> None: ...

class RebalanceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("expert_actors",)
    EXPERT_ACTORS_FIELD_NUMBER: _ClassVar[int]
    expert_actors: int
    def __init__(self, expert_actors: _Optional[int] = ...) -> None: ...

class RestartRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ActorStatus(_message.Message):
    __slots__ = ("name", "kind", "index", "pid", "node_ip", "device", "state", "restarts", "experts", "memory_bytes", "lost_links", "products", "load", "counters", "rows_of_experts")
    class RowsOfExpertsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NODE_IP_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOST_LINKS_FIELD_NUMBER: _ClassVar[int]
    PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    ROWS_OF_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    index: int
    pid: int
    node_ip: str
    device: str
    state: str
    restarts: int
    experts: _containers.RepeatedScalarFieldContainer[int]
    memory_bytes: int
    lost_links: _containers.RepeatedScalarFieldContainer[str]
    products: str
    load: ActorLoad
    counters: EngineCounters
    rows_of_experts: _containers.ScalarMap[int, int]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., index: _Optional[int] = ..., pid: _Optional[int] = ..., node_ip: _Optional[str] = ..., device: _Optional[str] = ..., state: _Optional[str] = ..., restarts: _Optional[int] = ..., experts: _Optional[_Iterable[int]] = ..., memory_bytes: _Optional[int] = ..., lost_links: _Optional[_Iterable[str]] = ..., products: _Optional[str] = ..., load: _Optional[_Union[ActorLoad, _Mapping]] = ..., counters: _Optional[_Union[EngineCounters, _Mapping]] = ..., rows_of_experts: _Optional[_Mapping[int, int]] = ...) -> None: ...

class ActorLoad(_message.Message):
    __slots__ = ("running", "waiting", "free_blocks", "total_blocks", "prefix_queried_tokens", "prefix_hit_tokens")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_QUERIED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    prefix_queried_tokens: int
    prefix_hit_tokens: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., free_blocks: _Optional[int] = ..., total_blocks: _Optional[int] = ..., prefix_queried_tokens: _Optional[int] = ..., prefix_hit_tokens: _Optional[int] = ...) -> None: ...

class EngineCounters(_message.Message):
    __slots__ = ("steps", "failed_sequences", "generated_tokens", "preemptions", "draft_tokens", "accepted_draft_tokens")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FAILED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    failed_sequences: int
    generated_tokens: int
    preemptions: int
    draft_tokens: int
    accepted_draft_tokens: int
    def __init__(self, steps: _Optional[int] = ..., failed_sequences: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., accepted_draft_tokens: _Optional[int] = ...) -> None: ...

class OperationStatus(_message.Message):
    __slots__ = ("name", "step", "done", "total")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    step: str
    done: int
    total: int
    def __init__(self, name: _Optional[str] = ..., step: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class ClusterStatus(_message.Message):
    __slots__ = ("model", "epoch", "actors", "placement_version", "operation", "drain_seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ACTORS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    DRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    epoch: int
    actors: _containers.RepeatedCompositeFieldContainer[ActorStatus]
    placement_version: int
    operation: OperationStatus
    drain_seconds: float
    def __init__(self, model: _Optional[str] = ..., epoch: _Optional[int] = ..., actors: _Optional[_Iterable[_Union[ActorStatus, _Mapping]]] = ..., placement_version: _Optional[int] = ..., operation: _Optional[_Union[OperationStatus, _Mapping]] = ..., drain_seconds: _Optional[float] = ...) -> None: ...
