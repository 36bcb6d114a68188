"""Speculative decoding by prompt lookup: which drafts join a step, and what became of them.

    last token + drafts      t  d1 d2 d3      one row each, at positions n - 1 .. n + 2, over the same cache
    drawn from each row      d1 d2 x  -       x is not what d3's row was computed for: three tokens, one draft wasted

A row's token is a function of its logits, the request's seed and the position. So a draft is accepted exactly where it is
the token that would have been drawn, greedy or not, and the output is the one without drafts.

How often a sequence's drafts are right is seen at every token that it draws, whether or not the draft was computed: a
sequence that begins to repeat itself is noticed at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from actors.dense.scheduling.block_pool import BlockPool
from actors.dense.scheduling.scheduler import Chunk, SchedulerLimits
from actors.dense.scheduling.sequence import Sequence
from actors.dense.speculation.draft_budget import StepCost, draft_counts
from actors.dense.speculation.prompt_lookup import PromptLookup

_FIRST_ACCEPTANCE = 0.4
_NEWEST = 0.2
"""Weight of the newest draft in a sequence's acceptance."""
_MOST_INDEXED = 4096
"""Tokens of a sequence that are indexed in one step: a long prompt must not hold everybody up."""


@dataclass(slots=True)
class _State:
    """Of one sequence."""

    lookup: PromptLookup
    acceptance: float = _FIRST_ACCEPTANCE
    proposed: list[int] = field(default_factory=list)
    """Drafts for the step under way, computed or not."""


class Speculator:
    """Adds drafts to steps in which all sequences decode. Owns nothing but what it remembers of sequences."""

    def __init__(self, max_drafts: int, limits: SchedulerLimits, pool: BlockPool) -> None:
        """max_drafts: of one sequence in one step, at least 1."""
        self._max_drafts = max_drafts
        self._limits = limits
        self._pool = pool
        self._cost = StepCost()
        self._states: dict[Sequence, _State] = {}
        self.num_proposed = 0
        """Drafts that were computed."""
        self.num_accepted = 0

    def add_drafts(self, chunks: list[Chunk]) -> list[Chunk]:
        """The same step, each chunk one token, with as many drafts as are worth their rows and find room."""
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
        """A chunk's sequence goes on with these tokens: those of the drafts that were right, and one more.

        Its blocks are named up to the last draft that was right; what was written behind that belongs to nobody.
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
        """A step was computed; only those that just decode are told."""
        self._cost.note(sum(chunk.num_rows for chunk in chunks), seconds)

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended; one that was never seen is forgotten as well."""
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
        """No draft is computed whose row could not be used: behind the last token, or behind LongRoPE's crossing."""
        most = min(self._max_drafts, sequence.params.max_tokens - len(sequence.output_ids) - 1)
        threshold = self._limits.long_rope_threshold
        if threshold is not None and not sequence.is_long:
            most = min(most, threshold - sequence.num_tokens)
        return max(most, 0)

    def _with_drafts(self, chunk: Chunk, drafts: list[int]) -> Chunk:
        """Fewer where blocks run out: no sequence gives up its own for a guess."""
        sequence, block_size = chunk.sequence, self._pool.block_size
        room = (len(sequence.blocks) + self._pool.num_free) * block_size - chunk.end
        drafts = drafts[: max(room, 0)]
        if not self._pool.grow(sequence, chunk.end + len(drafts)):
            return chunk
        return replace(chunk, drafts=tuple(drafts))
