from hypothesis import given
from hypothesis import strategies as st

from cluster.openai.replies.stops import StopScanner

# Few letters, so that stop strings overlap themselves, each other and the ends of pieces.
texts = st.text("abS", max_size=30)
stop_lists = st.lists(st.text("abS", min_size=1, max_size=5), max_size=4, unique=True)
piece_lists = st.lists(st.text("abS", max_size=6), max_size=12)


def _expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Text before the stop string that is complete first (of several the longest), and that stop string."""
    ends = {stop: text.find(stop) + len(stop) for stop in stops if stop in text}
    if not ends:
        return text, None
    found = min(ends, key=lambda stop: (ends[stop], -len(stop)))
    return text[: ends[found] - len(found)], found


def _scan(scanner: StopScanner, pieces: list[str]) -> str:
    text = ""
    for piece in pieces:
        text += scanner.push(piece)
        if scanner.found is not None:
            break
    return text + scanner.flush()


@given(pieces=piece_lists, stops=stop_lists)
def test_the_result_is_that_of_a_search_in_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    scanner = StopScanner(stops)
    text, found = _expected("".join(pieces), stops)
    assert (_scan(scanner, pieces), scanner.found) == (text, found)


@given(pieces=piece_lists, stops=stop_lists)
def test_an_included_stop_string_ends_the_text(pieces: list[str], stops: list[str]) -> None:
    scanner = StopScanner(stops, include_stop=True)
    text, found = _expected("".join(pieces), stops)
    assert (_scan(scanner, pieces), scanner.found) == (text + (found or ""), found)


@given(pieces=piece_lists, stops=stop_lists, rest=st.text("abS", max_size=6))
def test_nothing_is_given_out_that_may_begin_a_stop_string(
    pieces: list[str], stops: list[str], rest: str
) -> None:
    scanner = StopScanner(stops)
    given_out = ""
    for piece in pieces:
        given_out += scanner.push(piece)
        if scanner.found is not None:
            return
    assert _expected("".join(pieces) + rest, stops)[0].startswith(given_out)


@given(pieces=piece_lists, stops=stop_lists)
def test_no_more_is_held_back_than_may_begin_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    scanner = StopScanner(stops)
    given_out = "".join(scanner.push(piece) for piece in pieces if scanner.found is None)
    if scanner.found is None:
        held = "".join(pieces)[len(given_out) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@given(before=texts, after=texts, stop=st.text("abS", min_size=1, max_size=4))
def test_a_stop_string_counts_where_it_ends_in_an_armed_piece(before: str, after: str, stop: str) -> None:
    scanner = StopScanner([stop])
    text = scanner.push(before, is_armed=False)
    assert scanner.found is None
    text += scanner.push(after)
    text += scanner.flush()
    start = (before + after).find(stop, max(len(before) - len(stop) + 1, 0))
    assert scanner.found == (None if start < 0 else stop)
    assert text == (before + after if start < 0 else (before + after)[:start])


def test_without_stop_strings_text_passes_at_once() -> None:
    scanner = StopScanner([])
    assert scanner.push("anything") == "anything"
    assert scanner.flush() == ""
