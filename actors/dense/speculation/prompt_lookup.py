"""Guesses how a sequence goes on from what it said before: no model, only its own tokens.

    prompt + output   ... a b c d e f ...... a b c      the last three tokens stood there before,
    drafts                                        d e f    so what followed them then may follow now

The longest match of 4 to 2 tokens counts, and among equal ones the latest. Each n-gram's latest place is kept in an index
that grows with the sequence, so a guess costs the same however long the sequence is (Saxena 2023, prompt lookup decoding;
Leviathan et al. 2023 for what is done with the guesses).
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens

_SIZES = (4, 3, 2)
"""Tokens that have to agree, tried in this order."""


class PromptLookup:
    """The index of one sequence."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}
        """N-gram, of any of the sizes -> the position behind its latest occurrence that has one."""

    @property
    def num_tokens(self) -> int:
        """How many tokens of the sequence it knows."""
        return len(self._tokens)

    def extend(self, token_ids: Tokens[int]) -> None:
        """The sequence's next tokens."""
        tokens, next_of = self._tokens, self._next_of
        for token_id in token_ids:
            end = len(tokens)
            for size in _SIZES:
                if size <= end:
                    next_of[tuple(tokens[end - size :])] = end
            tokens.append(token_id)

    def propose(self, num_tokens: int) -> list[int]:
        """Guesses of the next `num_tokens` tokens; none where the last ones never stood there before.

        A match that overlaps the end repeats itself: after `a b a b` come `a b a b ...`.
        """
        tokens = self._tokens
        for size in _SIZES:
            position = self._next_of.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if position is not None:
                drafts = tokens[position : position + num_tokens]
                period = len(tokens) - position
                drafts += (drafts[index % period] for index in range(len(drafts), num_tokens))
                return drafts
        return []
