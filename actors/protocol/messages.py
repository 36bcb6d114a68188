"""The messages that cross processes, one type per hop.

    ingress -> dense actor    Hello, Submit, Cancel
    dense actor -> ingress    Welcome, StepOutput (one per engine step, for all sequences of that ingress)
    supervisor -> actors      Membership
    actors -> supervisor      Progress, ActorReport

Frames between ingress and dense actor are msgpack (`msgspec`), never pickle. This module imports no torch, so
that `cluster/` can use it.
"""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base class of all messages: immutable, keyword-only, and tagged with the class name on the wire."""


class SamplingParams(Message, frozen=True, kw_only=True):
    """How to continue one sequence. The ingress has checked all ranges; nothing is checked here."""

    max_tokens: int
    """Maximum number of tokens to generate, counting those in `Submit.output_ids`."""
    seed: int
    """Half of the key of the counter-based generator, 0 <= seed < 2**64; the other half is the position."""
    min_tokens: int = 0
    """Number of tokens before which neither end-of-sequence nor stop tokens can be sampled."""
    temperature: float = 1.0
    """0 means greedy."""
    top_k: int = 0
    """0 means off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Applies to tokens of prompt and output (Keskar et al. 2019, CTRL, section 4.1)."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time that the token occurs in the output."""
    presence_penalty: float = 0.0
    """Subtracted once if the token occurs in the output."""
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """Number of alternatives to report beside each generated token; None reports no probabilities."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens, except the first."""


class Hello(Message, frozen=True, kw_only=True):
    """First frame of a connection; the token proves that the peer belongs to the cluster."""

    token: str


class Submit(Message, frozen=True, kw_only=True):
    """Request to generate for one sequence. Another run of it has already produced `output_ids`."""

    sequence_id: str
    prompt_ids: list[int]
    params: SamplingParams
    output_ids: list[int] = []
    priority: int = 0
    """Sequences with a lower number go first."""
    cache_salt: str = ""
    """The sequence shares cached prefixes only with sequences that have the same salt."""


class Cancel(Message, frozen=True, kw_only=True):
    """Request to drop a sequence; no further output of it is sent."""

    sequence_id: str


class TokenLogprobs(Message, frozen=True, kw_only=True):
    """Natural-log probabilities at one position, before penalties and temperature."""

    token_id: int
    logprob: float
    rank: int
    """Place of the token by probability; 1 for the most likely token."""
    top: list[tuple[int, float]] = []
    """The most likely tokens as (token id, logprob), best first."""


class SequenceDelta(Message, frozen=True, kw_only=True):
    """The tokens that one step adds to one sequence, and how the sequence ended, if it did."""

    sequence_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []
    """One entry per token id if the request asked for them, else empty."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Entries for prompt positions 1..n-1; sent once, with or before the first token."""
    num_cached_tokens: int | None = None
    """Prompt tokens that the prefix cache held; sent with the first token, except for a resumed sequence."""
    finish_reason: str | None = None
    """None while the sequence runs, else "stop", "length" or "error"."""
    stop_token_id: int | None = None
    """The token that ended the sequence, if finish_reason is "stop"."""
    error: str | None = None
    """What went wrong, if finish_reason is "error"."""
    is_worth_retrying: bool = False
    """Whether the error is that an actor stayed lost for too long; the sequence itself was sound."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy a dense actor is, in numbers of sequences and KV blocks."""

    running: int
    waiting: int
    free_blocks: int
    """Free blocks, including blocks that hold a cached prefix which no sequence uses at present."""
    total_blocks: int
    prefix_queried_tokens: int = 0
    """Tokens, of all sequences, that were looked up among the cached prefixes."""
    prefix_hit_tokens: int = 0
    """Looked-up tokens that were found and not computed again."""


class EngineCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of what the engine of a dense actor has done since its start."""

    steps: int
    failed_sequences: int
    """Sequences that were answered with an error because they could not be computed."""
    generated_tokens: int
    preemptions: int
    """Number of times that a running sequence gave up its blocks and was computed again later."""
    draft_tokens: int
    """Tokens that speculation guessed and the model computed."""
    accepted_draft_tokens: int
    """Draft tokens that were right."""


class PrefixRule(Message, frozen=True, kw_only=True):
    """Rule by which sequences share cached prefixes at a dense actor (`actors.protocol.prefix_hash`)."""

    block_size: int
    """Tokens per block; only full blocks are shared."""
    long_rope_threshold: int | None
    """Longest sequence, in tokens, that uses LongRoPE's short factors; None without LongRoPE."""


class Welcome(Message, frozen=True, kw_only=True):
    """Answer to Hello."""

    is_ready: bool
    """Whether the exchange with expert actors is up, so that steps are possible."""
    max_model_len: int
    load: Load
    prefix_rule: PrefixRule | None = None
    """None if the dense actor does not share prefixes."""


class StepOutput(Message, frozen=True, kw_only=True):
    """Results of one engine step for one ingress; without deltas, a heartbeat or a change of readiness."""

    deltas: list[SequenceDelta]
    load: Load
    is_ready: bool = True
    num_submitted: int = 0
    """Number of Submit frames of this connection that `load` includes; the `IngressServer` fills it in."""


class DenseMember(Message, frozen=True, kw_only=True):
    """What peers must know of a dense actor."""

    index: int
    store_host: str
    """Host of the dense actor's TCPStore, through whose keys its links are set up."""
    store_port: int
    """Port of that TCPStore."""
    incarnation: str = ""
    """Unique id of the process that is this actor at present."""


class ExpertMember(Message, frozen=True, kw_only=True):
    """What peers must know of an expert actor."""

    index: int
    experts: tuple[int, ...]
    """Logical experts that the actor holds, ascending; several actors may hold the same expert."""
    incarnation: str = ""
    """Unique id of the process that is this actor at present."""


class Membership(Message, frozen=True, kw_only=True):
    """One version of the list of all actors. Every actor receives it; a higher epoch replaces a lower one."""

    epoch: int
    dense: tuple[DenseMember, ...]
    experts: tuple[ExpertMember, ...]


class Progress(Message, frozen=True, kw_only=True):
    """How far an actor has loaded its weights."""

    state: str
    """"starting", "loading", "loaded", "ready" or "failed"."""
    bytes_done: int
    bytes_total: int
    error: str | None = None


class ActorReport(Message, frozen=True, kw_only=True):
    """An actor's report of itself, for `phimoe status` and /cluster."""

    device: str
    state: str
    """"starting", "ready" or "lost"."""
    epoch: int
    experts: tuple[int, ...]
    memory_bytes: int
    """Anonymous resident bytes on a CPU, bytes allocated on the device on CUDA."""
    lost_links: tuple[str, ...] = ()
    """Names (expert-3, dense-0) of peers of the newest membership to which the actor has no working link."""
    suspected_links: tuple[str, ...] = ()
    """For a dense actor: names of expert actors whose answer is unusually late, so that they may hang."""
    expert_load: tuple[tuple[int, ...], ...] = ()
    """For a dense actor: rows routed since its start, per layer and logical expert."""
    products: str = ""
    """How the actor multiplies matrices ("avx512", "avx2", "onednn", "torch"); empty before it has loaded."""
    load: Load | None = None
    """How busy a dense actor is; None before its weights are loaded, and for an expert actor."""
    counters: EngineCounters | None = None
    """What a dense actor has done; None before its weights are loaded, and for an expert actor."""
    rows_of_experts: dict[int, int] = {}
    """For an expert actor: rows computed since its start, by expert that it holds."""
