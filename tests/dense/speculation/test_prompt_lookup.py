"""Guesses from a sequence's own tokens, against a plain search."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dense.speculation.prompt_lookup import PromptLookup

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def lookup_of(tokens: list[int]) -> PromptLookup:
    lookup = PromptLookup()
    lookup.extend(tokens)
    return lookup


def plain(tokens: list[int], num_drafts: int) -> list[int]:
    """Search the whole sequence, token by token if the match reaches the end."""
    for size in (4, 3, 2):
        suffix = tokens[len(tokens) - size :]
        for end in range(len(tokens) - 1, size - 1, -1):
            if len(suffix) == size and tokens[end - size : end] == suffix:
                longer = list(tokens)
                for index in range(num_drafts):
                    longer.append(longer[end + index])
                return longer[len(tokens) :]
    return []


@settings(max_examples=400)
@given(tokens=TOKENS, num_drafts=st.integers(0, 12))
def test_the_longest_and_latest_match_is_continued(tokens: list[int], num_drafts: int) -> None:
    assert lookup_of(tokens).propose(num_drafts) == plain(tokens, num_drafts)


@settings(max_examples=200)
@given(tokens=TOKENS, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_it_does_not_matter_in_which_pieces_the_tokens_come(tokens: list[int], cuts: list[int]) -> None:
    lookup, bounds = PromptLookup(), sorted({0, len(tokens), *(min(cut, len(tokens)) for cut in cuts)})
    for start, end in pairwise(bounds):
        lookup.extend(tokens[start:end])
        lookup.propose(3)
    assert lookup.num_tokens == len(tokens)
    assert lookup.propose(6) == lookup_of(tokens).propose(6)


@pytest.mark.parametrize(
    ("tokens", "drafts"),
    [
        pytest.param([1, 2, 3, 9, 8, 1, 2], [3, 9, 8, 1], id="goes on as before"),
        pytest.param([1, 2, 7, 1, 2, 5, 1, 2], [5, 1, 2, 5], id="the latest of several"),
        pytest.param([9, 1, 2, 7, 5, 1, 2, 8, 9, 1, 2], [7, 5, 1, 2], id="the longest before the latest"),
        pytest.param([4, 4, 4], [4, 4, 4, 4], id="a loop"),
        pytest.param([1, 2, 3, 4], [], id="nothing said twice"),
        pytest.param([1], [], id="one token"),
        pytest.param([], [], id="no token"),
    ],
)
def test_drafts(tokens: list[int], drafts: list[int]) -> None:
    assert lookup_of(tokens).propose(4) == drafts
