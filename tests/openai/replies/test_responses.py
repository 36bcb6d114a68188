import json
import math
from typing import Any

import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from actors.protocol.messages import TokenLogprobs
from cluster.errors import ModelNotFound, ServerUnavailable
from cluster.openai.encoding import SSE_DONE, encode_json, sse_error, sse_frame
from cluster.openai.fields.output import OutputOptions, StreamOptions
from cluster.openai.models import check_model, model_card, models_response
from cluster.openai.prompts.model_context import ModelLimits
from cluster.openai.replies.assembler import OutputPiece, merged
from cluster.openai.replies.responses import (
    ResponseHead,
    StreamChunks,
    Usage,
    UsageCount,
    chat_response,
    completion_response,
    full_response,
    response_id,
)
from cluster.openai.request import Kind, ParsedRequest
from tests.openai.deltas import assemble, deltas, sequence_request
from tests.openai.small_tokenizers import byte_fallback, byte_level

TOKENIZER = byte_level()
HEAD = ResponseHead(response_id="cmpl-1", created=1_700_000_000, model="phimoe")
PROMPT_IDS = TOKENIZER.encode("solve x")
OUTPUT_IDS = TOKENIZER.encode("yes, the x 😀")
EVERYTHING = OutputOptions(logprobs=2, return_token_ids=True)


def _request(output: OutputOptions | None = None, **fields: Any) -> Any:
    return sequence_request(output, prompt_ids=PROMPT_IDS, **fields)


def _pieces(request: Any, step: int = 1) -> list[OutputPiece]:
    stream = deltas(
        OUTPUT_IDS,
        step=step,
        with_logprobs=request.output.logprobs is not None,
        prompt_ids=PROMPT_IDS if request.output.echo or request.output.prompt_logprobs is not None else None,
    )
    return assemble(TOKENIZER, request, stream)


def _whole(kind: Kind, *requests: Any) -> dict[str, Any]:
    choices = [(request, merged(_pieces(request))) for request in requests]
    body: dict[str, Any] = json.loads(encode_json(full_response(kind, HEAD, choices, TOKENIZER)))
    return body


def _stream(kind: Kind, *requests: Any, step: int = 1, **options: bool) -> list[dict[str, Any]]:
    parsed = ParsedRequest(kind=kind, model=None, stream=True, stream_options=StreamOptions(**options))
    chunks = StreamChunks(parsed, HEAD, requests, TOKENIZER)
    bodies = chunks.opening()
    for request in requests:
        bodies += [chunks.chunk(request, piece) for piece in _pieces(request, step)]
    bodies += chunks.closing()
    return [json.loads(encode_json(body)) for body in bodies]


def test_a_completion_is_what_the_openai_client_expects() -> None:
    body = _whole("completion", _request(), _request(index=1))
    answer = Completion.model_validate(body, strict=True)
    assert [choice.text for choice in answer.choices] == ["yes, the x 😀"] * 2
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(PROMPT_IDS)
    assert answer.usage.completion_tokens == 2 * len(OUTPUT_IDS)
    assert "token_ids" not in body["choices"][0]


def test_prompts_of_a_batch_are_all_counted() -> None:
    body = _whole("completion", _request(), _request(index=1, prompt_index=1))
    assert body["usage"]["prompt_tokens"] == 2 * len(PROMPT_IDS)


def test_completion_logprobs_are_parallel_lists() -> None:
    body = _whole("completion", _request(EVERYTHING))
    logprobs = Completion.model_validate(body, strict=True).choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs) == len(OUTPUT_IDS)
    assert logprobs.token_logprobs == [-token_id / 10 for token_id in OUTPUT_IDS]
    assert logprobs.tokens[0] == "yes" and logprobs.tokens[-1] == "bytes:\\x80"
    assert logprobs.top_logprobs[0] == {
        "yes": -OUTPUT_IDS[0] / 10,
        TOKENIZER.token_text(OUTPUT_IDS[0] + 1): -OUTPUT_IDS[0] / 20,
    }
    assert body["choices"][0]["token_ids"] == OUTPUT_IDS
    assert body["choices"][0]["prompt_token_ids"] == PROMPT_IDS


def test_an_echo_has_the_prompts_text_and_logprobs_in_front() -> None:
    request = _request(OutputOptions(echo=True, logprobs=1), echo_text="solve x")
    choice = _whole("completion", request)["choices"][0]
    assert choice["text"] == "solve xyes, the x 😀"
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(PROMPT_IDS) + len(OUTPUT_IDS)
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    assert logprobs["token_logprobs"][1] == -PROMPT_IDS[1] / 10
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith("bytes:") or choice["text"][offset:].startswith(token)


def test_an_echo_without_output_is_the_prompt() -> None:
    request = _request(OutputOptions(echo=True, logprobs=0), echo_text="solve x", is_prompt_only=True)
    body = _whole("completion", request)
    choice = body["choices"][0]
    assert (choice["text"], len(choice["logprobs"]["tokens"])) == ("solve x", len(PROMPT_IDS))
    assert body["usage"]["completion_tokens"] == 0


def test_a_chat_answer_is_what_the_openai_client_expects() -> None:
    body = _whole("chat", _request(EVERYTHING))
    answer = ChatCompletion.model_validate(body, strict=True)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "yes, the x 😀")
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert [row.logprob for row in choice.logprobs.content] == [-token_id / 10 for token_id in OUTPUT_IDS]
    joined = b"".join(bytes(row.bytes or []) for row in choice.logprobs.content)
    assert joined.decode() == choice.message.content
    assert [len(row.top_logprobs) for row in choice.logprobs.content] == [2] * len(OUTPUT_IDS)
    assert body["choices"][0]["token_ids"] == OUTPUT_IDS
    assert body["prompt_token_ids"] == PROMPT_IDS


@pytest.mark.parametrize("num_top", [0, 1])
def test_no_more_alternatives_are_shown_than_asked_for(num_top: int) -> None:
    request = _request(OutputOptions(logprobs=num_top))
    rows = _whole("chat", request)["choices"][0]["logprobs"]["content"]
    assert {len(row["top_logprobs"]) for row in rows} == {num_top}
    tops = _whole("completion", request)["choices"][0]["logprobs"]["top_logprobs"]
    assert max(len(top) for top in tops) == 1 + num_top


def test_tokens_can_be_named_by_their_ids() -> None:
    request = _request(OutputOptions(logprobs=1, return_tokens_as_token_ids=True))
    names = [f"token_id:{token_id}" for token_id in OUTPUT_IDS]
    assert _whole("completion", request)["choices"][0]["logprobs"]["tokens"] == names
    rows = _whole("chat", request)["choices"][0]["logprobs"]["content"]
    assert [row["token"] for row in rows] == names
    assert rows[0]["top_logprobs"][0]["token"] == f"token_id:{OUTPUT_IDS[0] + 1}"


def test_prompt_logprobs_have_one_row_per_prompt_token() -> None:
    request = _request(OutputOptions(prompt_logprobs=1))
    on_choice = _whole("completion", request)["choices"][0]["prompt_logprobs"]
    assert on_choice == _whole("chat", request)["prompt_logprobs"]
    assert (len(on_choice), on_choice[0]) == (len(PROMPT_IDS), None)
    token_id = PROMPT_IDS[1]
    own, best = on_choice[1][str(token_id)], on_choice[1][str(token_id + 1)]
    assert own == {"logprob": -token_id / 10, "rank": 2, "decoded_token": TOKENIZER.token_text(token_id)}
    assert best["rank"] == 1


def test_minus_infinity_is_a_number_in_json() -> None:
    entry = TokenLogprobs(token_id=10, logprob=-math.inf, rank=9, top=[(11, -math.inf)])
    piece = OutputPiece(
        token_ids=(10,), logprobs=(entry,), text_offsets=(0,), num_tokens=1, finish_reason="stop"
    )
    request = sequence_request(OutputOptions(logprobs=1))
    for build in (completion_response, chat_response):
        assert b"-9999" in encode_json(build(HEAD, [(request, piece)], TOKENIZER))


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize("echo_text", ["", "solve x"])
def test_a_streamed_completion_adds_up_to_the_whole(step: int, echo_text: str) -> None:
    output = OutputOptions(logprobs=2, return_token_ids=True, echo=bool(echo_text))
    request = _request(output, echo_text=echo_text)
    chunks = _stream("completion", request, step=step)
    for chunk in chunks[:-1]:
        assert chunk["choices"][0].pop("finish_reason") is None
    choices = [chunk["choices"][0] for chunk in chunks]
    whole = _whole("completion", request)["choices"][0]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert [i for choice in choices for i in choice["token_ids"]] == whole["token_ids"]
    for name, values in whole["logprobs"].items():
        assert [value for choice in choices for value in choice["logprobs"][name]] == values
    assert choices[-1]["finish_reason"] == whole["finish_reason"]
    assert [choice.get("prompt_token_ids") for choice in choices] == [PROMPT_IDS] + [None] * (
        len(choices) - 1
    )
    if (
        not echo_text
    ):  # The client's classes have no room for the null that stands for the first prompt token's logprob.
        Completion.model_validate(chunks[-1], strict=True)


@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_streamed_chat_adds_up_to_the_whole(step: int) -> None:
    requests = [_request(EVERYTHING), _request(EVERYTHING, index=1)]
    bodies = _stream("chat", *requests, step=step)
    chunks = [ChatCompletionChunk.model_validate(body, strict=True) for body in bodies]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] * 2 + [None] * (len(chunks) - 2)
    assert [body.get("prompt_token_ids") for body in bodies[:3]] == [PROMPT_IDS, PROMPT_IDS, None]
    for request, whole in zip(requests, _whole("chat", *requests)["choices"], strict=True):
        mine = [body["choices"][0] for body in bodies if body["choices"][0]["index"] == request.index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == whole["message"]["content"]
        assert [i for choice in mine for i in choice.get("token_ids", [])] == whole["token_ids"]
        rows = [row for choice in mine if choice["logprobs"] for row in choice["logprobs"]["content"]]
        assert rows == whole["logprobs"]["content"]
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["length"]


def test_a_continued_chat_message_is_echoed_once() -> None:
    request = _request(OutputOptions(echo=True), echo_text="x = ")
    whole = _whole("chat", request)["choices"][0]["message"]["content"]
    deltas_ = [body["choices"][0]["delta"].get("content", "") for body in _stream("chat", request)]
    assert whole == "".join(deltas_) == "x = yes, the x 😀"


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_usage_comes_last_and_without_choices(kind: Kind) -> None:
    *earlier, last = _stream(kind, _request(), _request(index=1), include_usage=True)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": len(PROMPT_IDS),
        "completion_tokens": 2 * len(OUTPUT_IDS),
        "total_tokens": len(PROMPT_IDS) + 2 * len(OUTPUT_IDS),
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert {str(chunk["usage"]) for chunk in earlier} == {"None"}
    ChatCompletionChunk.model_validate({**last, "object": "chat.completion.chunk"}, strict=True)


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_usage_may_come_with_every_chunk(kind: Kind) -> None:
    counts = [
        chunk["usage"]["completion_tokens"]
        for chunk in _stream(kind, _request(), continuous_usage_stats=True)
    ]
    assert counts == sorted(counts)
    assert counts[-1] == len(OUTPUT_IDS)
    assert all("usage" not in chunk for chunk in _stream(kind, _request()))


def test_cached_tokens_are_those_that_no_choice_of_the_prompt_had_to_compute() -> None:
    requests = [sequence_request(index=index, prompt_index=index // 2) for index in range(4)]
    count = UsageCount(requests)
    for request, cached in zip(requests, (0, 16, 48, 32), strict=True):
        count.add(request, OutputPiece(num_tokens=5, num_cached_tokens=cached))
    assert count.total == Usage(num_prompt_tokens=4, num_cached_tokens=32, num_completion_tokens=20)
    assert count.total.to_json()["prompt_tokens_details"] == {"cached_tokens": 32}


def test_byte_fallback_tokens_keep_their_bytes() -> None:
    tokenizer = byte_fallback()
    token_ids = tokenizer.encode("yes 😀")
    request = sequence_request(OutputOptions(logprobs=0), prompt_ids=[6])
    piece = merged(assemble(tokenizer, request, deltas(token_ids, with_logprobs=True)))
    rows = chat_response(HEAD, [(request, piece)], tokenizer)["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(row["bytes"]) for row in rows).decode() == " yes 😀"
    assert piece.text == "yes 😀"


def test_models_are_listed_as_the_client_expects() -> None:
    limits = ModelLimits(max_model_len=4096, vocab_size=512)
    body = models_response(["phimoe", "alias"], 1_700_000_000, limits)
    assert [Model.model_validate(card, strict=True).id for card in body["data"]] == ["phimoe", "alias"]
    card = model_card("phimoe", 1, limits)
    assert card["max_model_len"] == 4096 and card["meta"] == {"n_vocab": 512}


def test_a_model_is_known_by_its_served_names() -> None:
    assert check_model(None, ["phimoe", "alias"]) == "phimoe"
    assert check_model("alias", ["phimoe", "alias"]) == "alias"
    with pytest.raises(ModelNotFound, match="'gpt-5' is not served here"):
        check_model("gpt-5", ["phimoe"])


def test_events_are_framed() -> None:
    assert sse_frame({"text": "a\nb\u2028é"}) == 'data: {"text":"a\\nb\u2028é"}\n\n'.encode()
    assert SSE_DONE == b"data: [DONE]\n\n"
    frame = sse_error(ServerUnavailable("lost"))
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == "unavailable"
    assert response_id("chat", "7") == "chatcmpl-7"
    assert response_id("completion", "7") == "cmpl-7"
