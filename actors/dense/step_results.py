"""From a step's samples to the tokens of its sequences, and to what their connections are told.

samples of a chunk     d1 d2 x -       tokens up to the first draft that was wrong, and the one drawn in its place
delta of a sequence    [d1, d2, x]     with log-probabilities, and the reason where the sequence has ended
output of a step       one message to each connection: its deltas, the actor's load and whether it is ready
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import TypeAlias

from actors.dense.sampling.sampler import Sample
from actors.dense.scheduling.scheduler import Chunk
from actors.dense.scheduling.sequence import Sequence
from actors.errors import NoHolderError, NotReadyError
from actors.protocol.messages import Load, SequenceDelta, StepOutput

Emit: TypeAlias = Callable[[int, StepOutput], None]
"""Called from the engine's thread with (connection or EVERYBODY, output). It must not block."""

EVERYBODY = -1


class StepResults:
    """Collects what connections have to be told of a step, and tells it. One thread uses it."""

    def __init__(self, emit: Emit, eos_token_ids: Collection[int]) -> None:
        self._emit = emit
        self._eos_token_ids = frozenset(eos_token_ids)
        self._deltas: defaultdict[int, list[SequenceDelta]] = defaultdict(list)
        """Connection -> what it has not been told yet."""
        self._was_ready = False
        """What all connections were told last."""
        self.num_generated_tokens = 0

    def append(self, chunk: Chunk, samples: list[Sample]) -> tuple[list[int], str | None]:
        """Add what was drawn for a chunk to its sequence, up to the first draft that was wrong.

        Returns the new tokens, and the finish reason, which is None while the sequence goes on.
        """
        sequence = chunk.sequence
        token_ids: list[int] = []
        is_first = not sequence.is_resumed and not sequence.output_ids
        # With max_tokens 0 only the prompt is scored.
        is_wanted = len(sequence.output_ids) < sequence.params.max_tokens
        finish_reason = None if is_wanted else "length"
        for index, drawn in enumerate(samples):
            if finish_reason is not None:
                break
            token_ids.append(drawn.token_id)
            sequence.output_ids.append(drawn.token_id)
            finish_reason = self._finish_reason(sequence, drawn.token_id)
            if chunk.drafts[index : index + 1] != (drawn.token_id,):
                break
            sequence.num_computed += 1
        self.num_generated_tokens += len(token_ids)
        self._deltas[sequence.owner].append(
            SequenceDelta(
                sequence_id=sequence.sequence_id,
                token_ids=token_ids,
                logprobs=[
                    drawn.logprobs for drawn in samples[: len(token_ids)] if drawn.logprobs is not None
                ],
                prompt_logprobs=list(sequence.prompt_logprobs) if sequence.needs_prompt_logprobs else None,
                num_cached_tokens=sequence.num_cached_tokens if is_first else None,
                finish_reason=finish_reason,
                stop_token_id=sequence.output_ids[-1] if finish_reason == "stop" else None,
            )
        )
        sequence.needs_prompt_logprobs = False
        return token_ids, finish_reason

    def append_error(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence that cannot be computed. Its connection may try again where only holders of experts were missing."""
        self._deltas[sequence.owner].append(
            SequenceDelta(
                sequence_id=sequence.sequence_id,
                token_ids=[],
                finish_reason="error",
                error=f"{type(error).__name__}: {error}",
                is_worth_retrying=isinstance(error, NoHolderError | NotReadyError),
            )
        )

    def has_news(self, is_ready: bool) -> bool:
        """Whether some connection does not know yet what happened, or whether the engine is ready."""
        return bool(self._deltas) or is_ready != self._was_ready

    def tell(self, load: Load, is_ready: bool) -> None:
        """Tell all connections where the readiness has changed, then each connection what it has not been told."""
        if is_ready != self._was_ready:
            self._was_ready = is_ready
            self._emit(EVERYBODY, StepOutput(deltas=[], load=load, is_ready=is_ready))
        for connection, deltas in self._deltas.items():
            self._emit(connection, StepOutput(deltas=deltas, load=load, is_ready=is_ready))
        self._deltas.clear()

    def _finish_reason(self, sequence: Sequence, token_id: int) -> str | None:
        """For a sequence whose last token is this."""
        params = sequence.params
        is_eos = token_id in self._eos_token_ids and not params.ignore_eos
        if is_eos or token_id in params.stop_token_ids:
            return "stop"
        return "length" if len(sequence.output_ids) >= params.max_tokens else None
