"""One sequence as the dense actor sees it: its tokens, and how much of it the KV cache holds."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from functools import partial

from actors.protocol.messages import SamplingParams, TokenLogprobs
from actors.protocol.prefix_hash import extend_chain, prefix_root

AGING_ARRIVALS = 256
"""A level of priority is worth this many arrivals: a sequence is overtaken by that many later ones of one level lower and
by none after them."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens are prompt + output; the cache holds keys and values of the first `num_computed` of them."""

    sequence_id: str
    owner: int
    """The connection that submitted it and gets its output."""
    prompt_ids: list[int]
    output_ids: list[int]
    params: SamplingParams
    arrival: int
    """Order of submission."""
    priority: int = 0
    """Lower goes first."""
    is_resumed: bool = False
    """Whether it ran elsewhere before; somebody is reading it already, so it goes one level ahead."""
    blocks: array[int] = field(default_factory=partial(array, "i"))
    """KV blocks in order of position, int32: a step copies them at once."""
    num_computed: int = 0
    is_long: bool = False
    """Which LongRoPE list its cached keys were rotated with."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Collected so far, while the prompt is prefilled in chunks."""
    needs_prompt_logprobs: bool = False
    cache_salt: str = ""
    """Blocks are shared only among sequences with the same one."""
    num_named: int = 0
    """How many of its blocks, from the first one, have a name or are held by others as well: they are not written to."""
    num_cached_tokens: int | None = None
    """Tokens that were found computed when it was admitted first; None before."""
    turn: tuple[int, int] = field(init=False)
    """Its place in the order: lower ones go first and are preempted last. It never changes."""
    _hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.turn = self.arrival + AGING_ARRIVALS * (self.priority - self.is_resumed), self.arrival

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_uncomputed(self) -> int:
        return self.num_tokens - self.num_computed

    def token_ids(self, start: int, end: int) -> list[int]:
        """Tokens at positions start to end - 1."""
        num_prompt = len(self.prompt_ids)
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : end - num_prompt]
        if end <= num_prompt:
            return self.prompt_ids[start:end]
        return self.prompt_ids[start:] + self.output_ids[: end - num_prompt]

    def continued(self, token_ids: tuple[int, ...]) -> Sequence:
        """What it would be with these tokens behind its last one, for the sampler; itself where there are none."""
        return replace(self, output_ids=[*self.output_ids, *token_ids]) if token_ids else self

    def block_hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """Names of its first blocks, `num_blocks` or more, all of them full (`actors.protocol.prefix_hash`)."""
        hashes = self._hashes
        if len(hashes) < num_blocks:
            parent = hashes[-1] if hashes else prefix_root(self.cache_salt, self.is_long)
            token_ids = self.token_ids(len(hashes) * block_size, num_blocks * block_size)
            hashes += extend_chain(parent, token_ids, block_size)
        return hashes

    def use_list(self, is_long: bool) -> None:
        """Rotate keys with LongRoPE's long or short list from now on; the sequence must not hold any blocks."""
        assert not self.blocks
        self.is_long = is_long
        self._hashes.clear()
        self.restart()

    def restart(self) -> None:
        """Forget what was computed."""
        self.num_computed = 0
        self.prompt_logprobs.clear()
