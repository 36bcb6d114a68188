"""What crosses a process, one type per hop.

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
    """Base of all messages: immutable, keyword-only, tagged with its class name on the wire."""


class SamplingParams(Message, frozen=True, kw_only=True):
    """How one sequence is to be continued. Ranges are checked at the front door, not here."""

    max_tokens: int
    """Tokens to generate at most, counting those in `Submit.output_ids`."""
    seed: int
    """Key of the counter-based generator, 0 <= seed < 2**64; the other half of the key is the token's position."""
    min_tokens: int = 0
    """Before that many tokens neither end-of-sequence nor stop tokens can be sampled."""
    temperature: float = 1.0
    """0 means greedy."""
    top_k: int = 0
    """0 means off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output tokens (Keskar et al. 2019, CTRL, section 4.1)."""
    frequency_penalty: float = 0.0
    """Times the count of the token in the output."""
    presence_penalty: float = 0.0
    """Once for every token that is in the output."""
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """Alternatives to report per generated token beside the token itself; None reports nothing."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens (all but the first)."""


class Hello(Message, frozen=True, kw_only=True):
    """First frame of a connection: proves that the peer belongs to the cluster."""

    token: str


class Submit(Message, frozen=True, kw_only=True):
    """Generate for one sequence. `output_ids` are tokens that another run of the sequence already produced."""

    sequence_id: str
    prompt_ids: list[int]
    params: SamplingParams
    output_ids: list[int] = []
    priority: int = 0
    """Lower goes first."""
    cache_salt: str = ""
    """The sequence shares cached prefixes only with those that have the same one."""


class Cancel(Message, frozen=True, kw_only=True):
    """Forget the sequence; no further output of it is sent."""

    sequence_id: str


class TokenLogprobs(Message, frozen=True, kw_only=True):
    """Natural-log probabilities at one position, of the model's own distribution (before penalties, temperature)."""

    token_id: int
    logprob: float
    rank: int
    """1 for the most likely token."""
    top: list[tuple[int, float]] = []
    """The most likely (token id, logprob), best first."""


class SequenceDelta(Message, frozen=True, kw_only=True):
    """What one step adds to one sequence."""

    sequence_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []
    """One per token id where they were asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Sent once, with or before the first token; entries for prompt positions 1..n-1."""
    num_cached_tokens: int | None = None
    """Tokens of the prompt that were found computed; sent with the first token of a sequence that was not resumed."""
    finish_reason: str | None = None
    """None while it runs, else "stop", "length" or "error"."""
    stop_token_id: int | None = None
    """The token that ended it, where finish_reason is "stop"."""
    error: str | None = None
    """What went wrong, where finish_reason is "error"."""
    is_worth_retrying: bool = False
    """Whether the sequence was sound and an actor stayed lost for too long, where finish_reason is "error"."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy a dense actor is; counts of sequences and KV blocks."""

    running: int
    waiting: int
    free_blocks: int
    """Also those that hold a prefix which no sequence uses at present."""
    total_blocks: int
    prefix_queried_tokens: int = 0
    """Tokens of all sequences that were looked up among the cached prefixes."""
    prefix_hit_tokens: int = 0
    """Of those, tokens that were found and not computed again."""


class EngineCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine of a dense actor has done since its start."""

    steps: int
    failed_sequences: int
    """Sequences that were answered with an error because they could not be computed."""
    generated_tokens: int
    preemptions: int
    """How many times a running sequence gave its blocks to others and was computed again later."""
    draft_tokens: int
    """Tokens that speculation guessed and the model computed."""
    accepted_draft_tokens: int
    """Of those, tokens that were right."""


class PrefixRule(Message, frozen=True, kw_only=True):
    """Which sequences share cached prefixes at a dense actor (`actors.protocol.prefix_hash`)."""

    block_size: int
    """Tokens per block; only full blocks are shared."""
    long_rope_threshold: int | None
    """Longest sequence, in tokens, that uses LongRoPE's short list; None without LongRoPE."""


class Welcome(Message, frozen=True, kw_only=True):
    """Answer to Hello."""

    is_ready: bool
    """Whether the exchange with all expert actors is up."""
    max_model_len: int
    load: Load
    prefix_rule: PrefixRule | None = None
    """None where prefixes are not shared."""


class StepOutput(Message, frozen=True, kw_only=True):
    """One engine step's news for one ingress. An empty one is a heartbeat or a change of readiness."""

    deltas: list[SequenceDelta]
    load: Load
    is_ready: bool = True
    num_submitted: int = 0
    """Submit frames of this connection that `load` knows of; the front fills it in."""


class DenseMember(Message, frozen=True, kw_only=True):
    """A dense actor as its peers see it."""

    index: int
    store_host: str
    """Host and port of the TCPStore under whose keys its links meet."""
    store_port: int
    incarnation: str = ""
    """Unique to the process that fills the place."""


class ExpertMember(Message, frozen=True, kw_only=True):
    """An expert actor as its peers see it."""

    index: int
    experts: tuple[int, ...]
    """Logical experts that it holds, ascending; several actors may hold the same one."""
    incarnation: str = ""
    """Unique to the process that fills the place."""


class Membership(Message, frozen=True, kw_only=True):
    """Who takes part, in one version. Sent to every actor; a higher epoch replaces a lower one."""

    epoch: int
    dense: tuple[DenseMember, ...]
    experts: tuple[ExpertMember, ...]


class Progress(Message, frozen=True, kw_only=True):
    """How far an actor is with loading."""

    state: str
    """"starting", "loading", "loaded", "ready" or "failed"."""
    bytes_done: int
    bytes_total: int
    error: str | None = None


class ActorReport(Message, frozen=True, kw_only=True):
    """What an actor says of itself for `phimoe status` and /cluster."""

    device: str
    state: str
    """"starting", "ready" or "lost"."""
    epoch: int
    experts: tuple[int, ...]
    memory_bytes: int
    """Anonymous resident bytes on a CPU, allocated bytes of the device on CUDA."""
    lost_links: tuple[str, ...] = ()
    """Peers of the newest membership, by name (expert-3, dense-0), that it has no working link with."""
    suspected_links: tuple[str, ...] = ()
    """Of a dense actor: expert actors, by name, that owe an answer for longer than is usual, and may hang."""
    expert_load: tuple[tuple[int, ...], ...] = ()
    """Of a dense actor: rows routed since its start, per layer and logical expert."""
    products: str = ""
    """How it multiplies matrices ("avx512", "avx2", "onednn", "torch"); empty before its weights are loaded."""
    load: Load | None = None
    """How busy a dense actor is; None before its weights are loaded, and for an expert actor."""
    counters: EngineCounters | None = None
    """What a dense actor has done; None before its weights are loaded, and for an expert actor."""
    rows_of_experts: dict[int, int] = {}
    """Rows that an expert actor has computed since its start, by each expert that it holds."""
