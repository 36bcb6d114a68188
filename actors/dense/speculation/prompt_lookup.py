"""Guesses how a sequence goes on from its own earlier tokens, without a model.

    prompt + output   ... a b c d e f ...... a b c      the last three tokens occurred before,
    drafts                                        d e f    so the tokens that followed then may follow now

The longest match of 4 to 2 tokens counts and, among equally long ones, the latest. The latest position of
each n-gram is kept in an index that grows with the sequence, so a guess costs the same for any length of the
sequence (Saxena 2023, prompt lookup decoding; Leviathan et al. 2023 for how the guesses are used).
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens

_SIZES = (4, 3, 2)
"""Numbers of tokens that must match, tried from the first to the last."""


class PromptLookup:
    """The index of one sequence."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}
        """From an n-gram of any of these sizes to the position after its latest occurrence that has a next
        token."""

    @property
    def num_tokens(self) -> int:
        """Number of the sequence's tokens that are in the index."""
        return len(self._tokens)

    def extend(self, token_ids: Tokens[int]) -> None:
        """Add the sequence's next tokens to the index."""
        tokens, next_of = self._tokens, self._next_of
        for token_id in token_ids:
            end = len(tokens)
            for size in _SIZES:
                if size <= end:
                    next_of[tuple(tokens[end - size :])] = end
            tokens.append(token_id)

    def propose(self, num_tokens: int) -> list[int]:
        """Guess the next `num_tokens` tokens; return an empty list if the last tokens never occurred before.

        A match that overlaps the end of the sequence is repeated: `a b a b` continues as `a b a b ...`.
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
