"""Tests the hashes of prefixes, and the index of the prefixes that each dense actor has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.protocol.messages import PrefixRule
from actors.protocol.prefix_hash import extend_chain, prefix_root, prompt_hashes
from cluster.requests.prefix_affinity import PrefixIndex

RULE = PrefixRule(block_size=4, long_rope_threshold=20)
TEXTS = st.lists(st.integers(0, 1), max_size=30)


@given(TEXTS, TEXTS, st.sampled_from(["", "a"]), st.sampled_from(["", "a"]))
def test_names_are_equal_as_far_as_tokens_list_and_salt_are(
    first: list[int], second: list[int], first_salt: str, second_salt: str
) -> None:
    names = [
        prompt_hashes(RULE, text, salt, 256) for text, salt in ((first, first_salt), (second, second_salt))
    ]
    assert [len(part) for part in names] == [len(first) // 4, len(second) // 4]
    is_alike = first_salt == second_salt and (len(first) > 20) == (len(second) > 20)
    for index, (one, other) in enumerate(zip(*names, strict=False)):
        end = 4 * (index + 1)
        assert (one == other) == (is_alike and first[:end] == second[:end])


def test_a_chain_may_be_made_in_pieces_and_is_cut_where_asked() -> None:
    text, root = list(range(18)), prefix_root("", is_long=False)
    whole = extend_chain(root, text, 4)
    first = extend_chain(root, text[:8], 4)
    assert first + extend_chain(first[-1], text[8:], 4) == whole
    assert prompt_hashes(RULE, text, "", 3) == whole[:3]


def test_what_was_submitted_is_held_up_to_the_first_difference() -> None:
    held = PrefixIndex()
    held.note([b"a", b"b", b"c"])
    assert [held.num_held(names) for names in ([b"a", b"b"], [b"a", b"x", b"c"], [b"x"], [])] == [2, 1, 0, 0]
    held.forget()
    assert held.num_held([b"a"]) == 0


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=20), st.integers(1, 12))
def test_memory_is_bounded_and_the_prefix_used_last_is_held_as_far_as_it_fits(
    texts: list[list[int]], max_hashes: int
) -> None:
    held = PrefixIndex(max_hashes)
    names = [extend_chain(b"", text, 1) for text in texts]
    for chain in names:
        held.note(chain)
        assert held.num_held(chain) == min(len(chain), max_hashes)
    assert sum(held.num_held([name]) for name in {name for chain in names for name in chain}) <= max_hashes
