"""The deltas that an engine would send for given tokens, cut into steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from actors.protocol.messages import SamplingParams, SequenceDelta, TokenLogprobs
from cluster.openai.fields.output import OutputOptions
from cluster.openai.replies.assembler import ChoiceAssembler, OutputPiece
from cluster.openai.request import SequenceRequest
from cluster.tokenizer import Tokenizer
from tests.openai.small_tokenizers import END_ID, EOS_ID


def sequence_request(
    output: OutputOptions | None = None,
    *,
    prompt_ids: Sequence[int] = (10, 11),
    index: int = 0,
    prompt_index: int = 0,
    echo_text: str = "",
    params: SamplingParams | None = None,
    is_prompt_only: bool = False,
) -> SequenceRequest:
    return SequenceRequest(
        index=index,
        prompt_index=prompt_index,
        prompt_ids=tuple(prompt_ids),
        echo_text=echo_text,
        params=params or SamplingParams(max_tokens=100, seed=0),
        output=output or OutputOptions(),
        eos_token_ids=(EOS_ID, END_ID),
        is_prompt_only=is_prompt_only,
    )


def token_logprobs(token_id: int) -> TokenLogprobs:
    """Values that tell tokens apart."""
    return TokenLogprobs(
        token_id=token_id,
        logprob=-token_id / 10,
        rank=2,
        top=[(token_id + 1, -token_id / 20), (token_id, -token_id / 10)],
    )


def deltas(
    token_ids: Sequence[int],
    *,
    step: int = 1,
    finish_reason: str | None = "length",
    stop_token_id: int | None = None,
    with_logprobs: bool = False,
    prompt_ids: Sequence[int] | None = None,
) -> Iterator[SequenceDelta]:
    """Return one delta per `step` tokens; the last delta says how the sequence ended.

    With `prompt_ids`, the first delta has their logprobs.
    """
    starts = range(0, max(len(token_ids), 1), step)
    for start in starts:
        part = list(token_ids[start : start + step])
        is_last = start == starts[-1]
        is_with_prompt = prompt_ids is not None and start == 0
        yield SequenceDelta(
            sequence_id="s",
            token_ids=part,
            logprobs=[token_logprobs(token_id) for token_id in part] if with_logprobs else [],
            prompt_logprobs=[token_logprobs(i) for i in (prompt_ids or ())[1:]] if is_with_prompt else None,
            finish_reason=finish_reason if is_last else None,
            stop_token_id=stop_token_id if is_last else None,
        )


def assemble(
    tokenizer: Tokenizer, request: SequenceRequest, stream: Iterator[SequenceDelta]
) -> list[OutputPiece]:
    """Return all pieces up to the piece that finishes the choice."""
    assembler = ChoiceAssembler(tokenizer, request)
    pieces = []
    for delta in stream:
        piece = assembler.push(delta)
        if piece is not None:
            pieces.append(piece)
        if assembler.finish_reason is not None:
            break
    return pieces
