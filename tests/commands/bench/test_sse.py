from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cluster.commands.bench.sse import EventReader


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=8
    ),
    st.lists(st.integers(0, 300), max_size=12),
    st.sampled_from(["\n", "\r\n"]),
)
def test_events_are_the_same_wherever_the_chunks_end(texts: list[str], cuts: list[int], newline: str) -> None:
    body = "".join(f"data: {text}{newline}{newline}" for text in texts).encode()
    bounds = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    reader = EventReader()
    events = [event for begin, end in pairwise(bounds) for event in reader.feed(body[begin:end])]
    assert [event.decode() for event in events] == texts


def test_comments_and_other_fields_are_skipped_and_data_lines_joined() -> None:
    body = (
        b": a comment\nevent: message\nid: 7\ndata:one\ndata: two\ndata:  three\n\n: ping\n\ndata: [DONE]\n\n"
    )
    assert EventReader().feed(body) == [b"one\ntwo\n three", b"[DONE]"]


def test_an_unfinished_event_is_not_reported() -> None:
    reader = EventReader()
    assert reader.feed(b"data: half\n") == []
    assert reader.feed(b"\n") == [b"half"]
