"""One sequence of a dense actor: its tokens, and how much of it the KV cache holds."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from functools import partial

from actors.protocol.messages import SamplingParams, TokenLogprobs
from actors.protocol.prefix_hash import extend_chain, prefix_root

AGING_ARRIVALS = 256
"""Arrivals that one level of priority is worth: a sequence is overtaken by at most this many later arrivals
of the next more urgent level."""


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens are prompt + output; the cache holds keys and values of the first `num_computed` of them."""

    sequence_id: str
    owner: int
    """The connection that submitted the sequence and gets its output."""
    prompt_ids: list[int]
    output_ids: list[int]
    params: SamplingParams
    arrival: int
    """Number of sequences that were submitted before this one."""
    priority: int = 0
    """A sequence with a lower number goes first."""
    is_resumed: bool = False
    """Whether the sequence ran on another dense actor before. Its client is reading already, so it goes one
    level ahead."""
    blocks: array[int] = field(default_factory=partial(array, "i"))
    """KV blocks in order of position. They are int32 in one array, so that a step can copy them at once."""
    num_computed: int = 0
    is_long: bool = False
    """Whether the cached keys were rotated with LongRoPE's long list."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Log-probabilities of the prompt that are collected so far, while it is prefilled in chunks."""
    needs_prompt_logprobs: bool = False
    cache_salt: str = ""
    """Sequences share blocks only if they have the same salt."""
    num_named: int = 0
    """Number of leading blocks that have a name or that other sequences hold as well. They are not written
    to."""
    num_cached_tokens: int | None = None
    """Tokens that were found in the cache when the sequence was first admitted; None before."""
    priority_key: tuple[int, int] = field(init=False)
    """Place in the priority order: sequences with lower keys go first and are preempted last. It never
    changes."""
    _hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.priority_key = self.arrival + AGING_ARRIVALS * (self.priority - self.is_resumed), self.arrival

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_uncomputed(self) -> int:
        return self.num_tokens - self.num_computed

    def token_ids(self, start: int, end: int) -> list[int]:
        """The tokens at positions start .. end - 1."""
        num_prompt = len(self.prompt_ids)
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : end - num_prompt]
        if end <= num_prompt:
            return self.prompt_ids[start:end]
        return self.prompt_ids[start:] + self.output_ids[: end - num_prompt]

    def continued(self, token_ids: tuple[int, ...]) -> Sequence:
        """A copy with `token_ids` appended, for sampling after drafts; self if there are none."""
        return replace(self, output_ids=[*self.output_ids, *token_ids]) if token_ids else self

    def block_hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """The names of at least the first `num_blocks` blocks, all of which are full
        (`actors.protocol.prefix_hash`)."""
        hashes = self._hashes
        if len(hashes) < num_blocks:
            parent = hashes[-1] if hashes else prefix_root(self.cache_salt, self.is_long)
            token_ids = self.token_ids(len(hashes) * block_size, num_blocks * block_size)
            hashes += extend_chain(parent, token_ids, block_size)
        return hashes

    def use_list(self, is_long: bool) -> None:
        """Rotate keys with LongRoPE's long or short list from now on. The sequence must not hold any
        blocks."""
        assert not self.blocks
        self.is_long = is_long
        self._hashes.clear()
        self.restart()

    def restart(self) -> None:
        """Mark all tokens as not computed and drop the log-probabilities of the prompt."""
        self.num_computed = 0
        self.prompt_logprobs.clear()
