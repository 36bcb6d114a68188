"""Turns the engine's tokens into the pieces of one choice that a client gets, over HTTP and gRPC alike.

    SequenceDelta -> tokens one by one -> IncrementalDecoder -> StopScanner -> OutputPiece

A token is given out together with the last character of its text. The tokens and the text of a piece
therefore belong together, and the pieces of a stream add up to the answer that is not streamed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from actors.protocol.messages import SequenceDelta, TokenLogprobs
from cluster.errors import RequestFailed
from cluster.openai.replies.stops import StopScanner
from cluster.openai.request import SequenceRequest
from cluster.tokenizer import IncrementalDecoder, Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputPiece:
    """The new output of one choice."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One entry per token if the request asks for logprobs, else empty."""
    text_offsets: tuple[int, ...] = ()
    """For each token, the number of characters of the choice's text before it."""
    num_tokens: int = 0
    """Tokens of the choice so far, for usage. Tokens whose text is still held back count as well."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that the dense actor found in its cache."""
    is_first: bool = False
    """Whether this is the first piece of the choice, which has the prompt's logprobs."""
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """Logprobs of the prompt positions 1..n-1, if the request asks for them and this is the first piece."""
    finish_reason: str | None = None
    """None while the choice goes on, afterwards "stop" or "length"."""
    stop_reason: str | int | None = None
    """The stop string, or the id of stop_token_ids, that ended the choice; None for the model's own end."""
    needs_cancel: bool = False
    """Whether the engine still generates this sequence and must be told to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _HeldToken:
    token_id: int
    logprobs: TokenLogprobs | None
    text_offset: int
    text_end: int
    """The length of decoded text that includes all of this token's text.

    If the token ends inside a character, the length includes that character.
    """


class ChoiceAssembler:
    """Assembles one choice.

    Push every delta of the choice's sequence in order, until a piece has a finish_reason.
    """

    def __init__(self, tokenizer: Tokenizer, request: SequenceRequest) -> None:
        self._request = request
        output = request.output
        self._decoder = IncrementalDecoder(tokenizer, request.prompt_ids, output.skip_special_tokens)
        self._scanner = StopScanner(output.stop, output.include_stop_str_in_output)
        self._shows_tokens = output.return_token_ids or output.logprobs is not None
        self._held: deque[_HeldToken] = deque()
        self._text: list[str] = []
        self._num_decoded = 0
        self._num_released = 0
        self._is_first = True
        self._prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
        self._stop_reason: str | int | None = None
        self._num_cached_tokens = 0
        self.num_tokens = 0
        """Tokens of the output so far, the stop token included."""
        self.finish_reason: str | None = None

    def push(self, delta: SequenceDelta) -> OutputPiece | None:
        """Return the piece that can be given out after this delta, or None if there is nothing to give out.

        Raises RequestFailed if generation of the sequence failed.
        """
        if self.finish_reason is not None:
            return None
        if delta.finish_reason == "error":
            raise RequestFailed(f"generation failed: {delta.error or 'no reason was given'}")
        if delta.prompt_logprobs is not None and self._prompt_logprobs is None:
            self._prompt_logprobs = tuple(delta.prompt_logprobs)
        if delta.num_cached_tokens is not None:
            self._num_cached_tokens = delta.num_cached_tokens
        if self._request.is_prompt_only:
            self._finish_prompt_only(delta)
        else:
            self._take_tokens(delta)
        return self._piece(needs_cancel=self.finish_reason is not None and delta.finish_reason is None)

    def _finish_prompt_only(self, delta: SequenceDelta) -> None:
        if delta.token_ids or delta.finish_reason is not None:
            self.finish_reason = "length"

    def _take_tokens(self, delta: SequenceDelta) -> None:
        last = len(delta.token_ids) - 1
        for index, token_id in enumerate(delta.token_ids):
            is_stop_token = index == last and delta.stop_token_id == token_id
            is_silent = is_stop_token and not self._request.output.include_stop_str_in_output
            self._take(token_id, delta.logprobs[index] if delta.logprobs else None, is_silent)
            if self._scanner.found is not None:
                self._finish("stop", self._scanner.found)
                return
        if delta.finish_reason is not None:
            stop_token_id = delta.stop_token_id
            is_own_end = stop_token_id in self._request.eos_token_ids
            self._finish(delta.finish_reason, None if is_own_end else stop_token_id)

    def _take(self, token_id: int, logprobs: TokenLogprobs | None, is_silent: bool) -> None:
        self.num_tokens += 1
        text_offset = self._num_decoded
        self._scan("" if is_silent else self._decoder.push((token_id,)))
        text_end = self._num_decoded + self._decoder.is_inside_character
        self._held.append(
            _HeldToken(token_id=token_id, logprobs=logprobs, text_offset=text_offset, text_end=text_end)
        )

    def _scan(self, decoded: str) -> None:
        """Pass decoded text through the scanner.

        A stop string counts only if at least min_tokens tokens precede the token that completes it.
        """
        self._num_decoded += len(decoded)
        released = self._scanner.push(decoded, is_armed=self.num_tokens > self._request.params.min_tokens)
        self._give(released)

    def _give(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._num_released += len(text)

    def _finish(self, reason: str, stop_reason: str | int | None) -> None:
        if self._scanner.found is None:
            self._scan(self._decoder.flush())
            if self._scanner.found is not None:
                reason, stop_reason = "stop", self._scanner.found
        self._give(self._scanner.flush())
        self.finish_reason, self._stop_reason = reason, stop_reason

    def _piece(self, needs_cancel: bool) -> OutputPiece | None:
        is_end = self.finish_reason is not None
        tokens = self._released_tokens() if self._text or self._shows_tokens or is_end else []
        if not (is_end or self._text or (tokens and self._shows_tokens)):
            return None
        piece = OutputPiece(
            text="".join(self._text),
            token_ids=tuple(token.token_id for token in tokens),
            logprobs=tuple(token.logprobs for token in tokens if token.logprobs is not None),
            text_offsets=tuple(min(token.text_offset, self._num_released) for token in tokens),
            num_tokens=self.num_tokens,
            num_cached_tokens=self._num_cached_tokens,
            is_first=self._is_first,
            prompt_logprobs=self._prompt_logprobs if self._is_first else None,
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
            needs_cancel=needs_cancel,
        )
        self._text.clear()
        self._is_first = False
        return piece

    def _released_tokens(self) -> list[_HeldToken]:
        """Take out the tokens whose whole text has been given out; at the end, all tokens."""
        is_end = self.finish_reason is not None
        released = []
        while self._held and (is_end or self._held[0].text_end <= self._num_released):
            released.append(self._held.popleft())
        return released


def merged(pieces: Sequence[OutputPiece]) -> OutputPiece:
    """Merge all pieces of one choice into one piece, for an answer that is not streamed.

    There must be at least one piece, and the last one must have a finish_reason.
    """
    first, last = pieces[0], pieces[-1]
    return OutputPiece(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        logprobs=tuple(logprobs for piece in pieces for logprobs in piece.logprobs),
        text_offsets=tuple(offset for piece in pieces for offset in piece.text_offsets),
        num_tokens=last.num_tokens,
        num_cached_tokens=last.num_cached_tokens,
        is_first=True,
        prompt_logprobs=first.prompt_logprobs,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        needs_cancel=last.needs_cancel,
    )
