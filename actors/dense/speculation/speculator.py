"""Speculative decoding by prompt lookup: which drafts join a step, and which of them were right.

    last token + drafts      t  d1 d2 d3      one row each, at positions n - 1 .. n + 2, over the same cache
    sampled from each row    d1 d2 x  -       x is not d3, for which the last row was computed:
                                              three new tokens, one draft wasted

The token that a row samples is a function of its logits, the request's seed and the position. So a draft is
accepted exactly if it is the token that would have been sampled, greedy or not, and the output is the same as
without drafts.

The speculator checks its drafts against every token that a sequence samples, whether or not they were
computed. So it notices at no cost when a sequence begins to repeat itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from actors.dense.scheduling.block_pool import BlockPool
from actors.dense.scheduling.scheduler import Chunk, SchedulerLimits
from actors.dense.scheduling.sequence import Sequence
from actors.dense.speculation.draft_budget import StepCost, draft_counts
from actors.dense.speculation.prompt_lookup import PromptLookup

_FIRST_ACCEPTANCE = 0.4
"""Assumed probability that a new sequence's draft is right."""
_NEWEST = 0.2
"""Weight of the newest draft in the acceptance of a sequence."""
_MOST_INDEXED = 4096
"""Tokens of a sequence that are indexed in one step at most, so that a long prompt does not delay the other
sequences."""


@dataclass(slots=True)
class _State:
    """The state of one sequence."""

    lookup: PromptLookup
    acceptance: float = _FIRST_ACCEPTANCE
    proposed: list[int] = field(default_factory=list)
    """Drafts for the current step, whether or not they are computed."""


class Speculator:
    """Adds drafts to steps in which all sequences decode. It owns nothing but the state that it keeps for
    each sequence."""

    def __init__(self, max_drafts: int, limits: SchedulerLimits, pool: BlockPool) -> None:
        """Make a speculator without any sequence. max_drafts: most drafts of one sequence in one step, at
        least 1."""
        self._max_drafts = max_drafts
        self._limits = limits
        self._pool = pool
        self._cost = StepCost()
        self._states: dict[Sequence, _State] = {}
        self.num_proposed = 0
        """Number of drafts that were computed."""
        self.num_accepted = 0

    def add_drafts(self, chunks: list[Chunk]) -> list[Chunk]:
        """Return the chunks with drafts added, as many as are worth their rows and find room. Each chunk must
        have one token."""
        states = [self._look_up(chunk.sequence) for chunk in chunks]
        counts = draft_counts(
            [state.acceptance for state in states],
            [len(state.proposed) for state in states],
            self._limits.max_batch_tokens - len(chunks),
            self._cost,
        )
        return [
            self._with_drafts(chunk, state.proposed[:count]) if count else chunk
            for chunk, state, count in zip(chunks, states, counts, strict=True)
        ]

    def note_drawn(self, chunk: Chunk, token_ids: list[int]) -> None:
        """Record the tokens with which a chunk's sequence goes on: the drafts that were right, and one more
        token.

        Its blocks are named up to the last draft that was right. Blocks that only hold wrong drafts are given
        back.
        """
        sequence = chunk.sequence
        if chunk.drafts:
            self.num_proposed += len(chunk.drafts)
            self.num_accepted += len(token_ids) - 1
            self._pool.note_computed(sequence)
            self._pool.trim(sequence, sequence.num_tokens)
        state = self._states.get(sequence)
        if state is None:
            return
        for draft, token_id in zip(state.proposed, token_ids, strict=False):
            state.acceptance += _NEWEST * ((draft == token_id) - state.acceptance)
        state.proposed = []

    def note_step(self, chunks: list[Chunk], seconds: float) -> None:
        """Record the duration of a computed step. Call this only for steps that just decode."""
        self._cost.note(sum(chunk.num_rows for chunk in chunks), seconds)

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended; do nothing if it is unknown."""
        self._states.pop(sequence, None)

    def _look_up(self, sequence: Sequence) -> _State:
        state = self._states.get(sequence)
        if state is None:
            state = self._states[sequence] = _State(PromptLookup())
        known, total = state.lookup.num_tokens, sequence.num_tokens
        end = min(total, known + _MOST_INDEXED)
        state.lookup.extend(sequence.token_ids(known, end))
        state.proposed = state.lookup.propose(self._most_drafts(sequence)) if end == total else []
        return state

    def _most_drafts(self, sequence: Sequence) -> int:
        """The most drafts whose rows can be used: none after the last token, and none beyond LongRoPE's
        crossing."""
        most = min(self._max_drafts, sequence.params.max_tokens - len(sequence.output_ids) - 1)
        threshold = self._limits.long_rope_threshold
        if threshold is not None and not sequence.is_long:
            most = min(most, threshold - sequence.num_tokens)
        return max(most, 0)

    def _with_drafts(self, chunk: Chunk, drafts: list[int]) -> Chunk:
        """Add drafts to a chunk, fewer if blocks run out, because no sequence gives up its blocks for a
        guess."""
        sequence, block_size = chunk.sequence, self._pool.block_size
        room = (len(sequence.blocks) + self._pool.num_free) * block_size - chunk.end
        drafts = drafts[: max(room, 0)]
        if not self._pool.grow(sequence, chunk.end + len(drafts)):
            return chunk
        return replace(chunk, drafts=tuple(drafts))
