from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.protocol.messages import SamplingParams, SequenceDelta
from cluster.errors import RequestFailed
from cluster.openai.fields.output import OutputOptions
from cluster.openai.replies.assembler import ChoiceAssembler, merged
from tests.openai.deltas import assemble, deltas, sequence_request, token_logprobs
from tests.openai.small_tokenizers import END_ID, EOS_ID, byte_fallback, byte_level

TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}
BYTES = TOKENIZERS["byte_level"]
kinds = pytest.mark.parametrize("kind", TOKENIZERS)
texts = st.text("the stop STOP\n 😀é中x", max_size=30)
stop_lists = st.lists(st.text("stop STOP😀", min_size=1, max_size=5), max_size=3, unique=True)
SHOWN = OutputOptions(return_token_ids=True, logprobs=1)


def _options(stops: Sequence[str] = (), **fields: bool) -> OutputOptions:
    return OutputOptions(stop=tuple(stops), return_token_ids=True, logprobs=1, **fields)


@kinds
@given(
    text=texts, stops=stop_lists, step=st.integers(1, 9), include=st.booleans(), min_tokens=st.integers(0, 6)
)
def test_streams_add_up_to_the_same_whole_however_they_are_cut(
    kind: str, text: str, stops: list[str], step: int, include: bool, min_tokens: int
) -> None:
    tokenizer = TOKENIZERS[kind]
    token_ids = [*tokenizer.encode(text, False), 9]
    params = SamplingParams(max_tokens=100, seed=0, min_tokens=min_tokens)
    request = sequence_request(_options(stops, include_stop_str_in_output=include), params=params)
    streamed = merged(assemble(tokenizer, request, deltas(token_ids, step=step, with_logprobs=True)))
    at_once = merged(assemble(tokenizer, request, deltas(token_ids, step=1000, with_logprobs=True)))
    for name in (
        "text",
        "token_ids",
        "logprobs",
        "text_offsets",
        "num_tokens",
        "finish_reason",
        "stop_reason",
    ):
        assert getattr(streamed, name) == getattr(at_once, name)
    assert (
        len(streamed.logprobs) == len(streamed.text_offsets) == len(streamed.token_ids) == streamed.num_tokens
    )


@kinds
@given(text=texts, stops=stop_lists, include=st.booleans())
def test_the_text_ends_where_a_search_finds_the_stop_string(
    kind: str, text: str, stops: list[str], include: bool
) -> None:
    tokenizer = TOKENIZERS[kind]
    token_ids = tokenizer.encode(text, False)
    request = sequence_request(
        _options(stops, include_stop_str_in_output=include), prompt_ids=[*token_ids, END_ID]
    )
    piece = merged(assemble(tokenizer, request, deltas(token_ids)))
    whole = tokenizer.decode(token_ids)
    ends = {stop: whole.find(stop) + len(stop) for stop in stops if stop in whole}
    if not ends:
        assert (piece.text, piece.finish_reason, piece.stop_reason) == (whole, "length", None)
        return
    found = min(ends, key=lambda stop: (ends[stop], -len(stop)))
    end = ends[found] if include else ends[found] - len(found)
    assert (piece.text, piece.finish_reason, piece.stop_reason) == (whole[:end], "stop", found)


@given(text=texts, stops=stop_lists, step=st.integers(1, 5))
def test_tokens_come_with_the_end_of_their_text(text: str, stops: list[str], step: int) -> None:
    token_ids = BYTES.encode(text, False)
    pieces = assemble(BYTES, sequence_request(_options(stops)), deltas(token_ids, step=step))
    given_text = ""
    given_ids: list[int] = []
    for piece in pieces:
        given_text += piece.text
        given_ids += piece.token_ids
        if piece.finish_reason is None:
            assert given_text.startswith(BYTES.decode(given_ids))
    assert given_ids == token_ids[: len(given_ids)]


@given(text=texts)
def test_offsets_say_where_tokens_begin(text: str) -> None:
    token_ids = BYTES.encode(text, False)
    piece = merged(assemble(BYTES, sequence_request(SHOWN), deltas(token_ids)))
    for index, offset in enumerate(piece.text_offsets):
        before = BYTES.decode(token_ids[:index])
        assert offset == len(before.removesuffix("\ufffd"))


def test_a_stop_string_across_tokens_never_leaks() -> None:
    token_ids = BYTES.encode("yes#no", False) + BYTES.encode("##", False)
    pieces = assemble(
        BYTES, sequence_request(_options(["###", "o##"])), deltas(token_ids, finish_reason=None)
    )
    assert [piece.text for piece in pieces] == ["yes", "#n", ""]
    last = pieces[-1]
    assert (last.finish_reason, last.stop_reason, last.needs_cancel) == ("stop", "o##", True)
    assert merged(pieces).token_ids == tuple(token_ids)


def test_the_engine_is_not_cancelled_when_it_ends_by_itself() -> None:
    token_ids = BYTES.encode("yes stop", False)
    (piece,) = assemble(BYTES, sequence_request(_options(["stop"])), deltas(token_ids, step=50))
    assert (piece.text, piece.stop_reason, piece.needs_cancel) == ("yes ", "stop", False)


def test_tokens_after_a_stop_string_in_the_same_step_are_dropped() -> None:
    token_ids = BYTES.encode("yes stop no no", False)
    (piece,) = assemble(BYTES, sequence_request(_options(["stop"])), deltas(token_ids, step=50))
    assert BYTES.decode(piece.token_ids) == "yes stop"
    assert piece.num_tokens == len(piece.token_ids) < len(token_ids)


@pytest.mark.parametrize(
    ("stop_id", "stop_reason"),
    [(END_ID, None), (EOS_ID, None), (40, 40)],
    ids=["end", "eos", "stop_token_ids"],
)
def test_the_token_that_ends_a_sequence_is_a_token_but_not_text(
    stop_id: int, stop_reason: int | None
) -> None:
    token_ids = [*BYTES.encode("yes", False), stop_id]
    request = sequence_request(OutputOptions(skip_special_tokens=False, return_token_ids=True))
    stream = deltas(token_ids, finish_reason="stop", stop_token_id=stop_id)
    piece = merged(assemble(BYTES, request, stream))
    assert (piece.text, piece.token_ids) == ("yes", tuple(token_ids))
    assert (piece.finish_reason, piece.stop_reason, piece.num_tokens) == ("stop", stop_reason, len(token_ids))


def test_a_stop_token_is_text_where_it_is_asked_for() -> None:
    stop_id = BYTES.encode("x", False)[0]
    token_ids = [*BYTES.encode("yes", False), stop_id]
    request = sequence_request(OutputOptions(include_stop_str_in_output=True))
    stream = deltas(token_ids, finish_reason="stop", stop_token_id=stop_id)
    assert merged(assemble(BYTES, request, stream)).text == "yesx"


def test_stop_strings_wait_for_min_tokens() -> None:
    token_ids = BYTES.encode("stop yes stop", False)
    params = SamplingParams(max_tokens=100, seed=0, min_tokens=1)
    piece = merged(assemble(BYTES, sequence_request(_options(["stop"]), params=params), deltas(token_ids)))
    assert (piece.text, piece.stop_reason) == ("stop yes ", "stop")


def test_half_a_character_at_the_end_becomes_a_replacement() -> None:
    token_ids = BYTES.encode("x😀", False)[:-1]
    pieces = assemble(BYTES, sequence_request(SHOWN), deltas(token_ids, with_logprobs=True))
    assert [piece.text for piece in pieces] == ["x", "\ufffd"]
    assert [len(piece.token_ids) for piece in pieces] == [1, 3]


def test_tokens_without_text_are_pieces_only_where_tokens_are_shown() -> None:
    token_ids = [4, 5, *BYTES.encode("x", False)]
    hidden = assemble(BYTES, sequence_request(), deltas(token_ids))
    assert [(piece.text, piece.num_tokens, piece.is_first) for piece in hidden] == [("x", 3, True)]
    shown = assemble(BYTES, sequence_request(SHOWN), deltas(token_ids))
    assert [piece.token_ids for piece in shown] == [(4,), (5,), (token_ids[2],)]
    assert [piece.is_first for piece in shown] == [True, False, False]


def test_the_prompts_logprobs_come_with_the_first_piece() -> None:
    prompt_ids = (10, 11, 12)
    request = sequence_request(SHOWN, prompt_ids=prompt_ids)
    pieces = assemble(BYTES, request, deltas([20, 21], with_logprobs=True, prompt_ids=prompt_ids))
    assert [piece.prompt_logprobs for piece in pieces] == [(token_logprobs(11), token_logprobs(12)), None]
    assert merged(pieces).prompt_logprobs == (token_logprobs(11), token_logprobs(12))


def test_the_prompts_logprobs_may_come_before_the_first_token() -> None:
    assembler = ChoiceAssembler(BYTES, sequence_request(SHOWN))
    early = SequenceDelta(sequence_id="s", token_ids=[], prompt_logprobs=[token_logprobs(11)])
    assert assembler.push(early) is None
    piece = assembler.push(SequenceDelta(sequence_id="s", token_ids=[20]))
    assert piece is not None
    assert piece.prompt_logprobs == (token_logprobs(11),)


def test_a_request_for_the_prompt_alone_shows_no_token() -> None:
    request = sequence_request(SHOWN, is_prompt_only=True)
    (piece,) = assemble(BYTES, request, deltas([20], with_logprobs=True, prompt_ids=(10, 11)))
    assert (piece.text, piece.token_ids, piece.num_tokens, piece.finish_reason) == ("", (), 0, "length")
    assert piece.prompt_logprobs == (token_logprobs(11),)


def test_an_answer_without_tokens_ends_too() -> None:
    (piece,) = assemble(BYTES, sequence_request(), deltas([], finish_reason="length"))
    assert (piece.text, piece.finish_reason, piece.is_first) == ("", "length", True)


def test_an_engines_error_is_raised() -> None:
    assembler = ChoiceAssembler(BYTES, sequence_request())
    with pytest.raises(RequestFailed, match="generation failed: out of blocks"):
        assembler.push(
            SequenceDelta(sequence_id="s", token_ids=[], finish_reason="error", error="out of blocks")
        )


def test_nothing_follows_the_end() -> None:
    assembler = ChoiceAssembler(BYTES, sequence_request(_options(["stop"])))
    for delta in deltas(BYTES.encode("stop", False), finish_reason=None):
        assembler.push(delta)
    assert assembler.finish_reason == "stop"
    assert assembler.push(SequenceDelta(sequence_id="s", token_ids=[20])) is None
    assert assembler.num_tokens == len(BYTES.encode("stop", False))
