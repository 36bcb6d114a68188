"""From a step's samples to the tokens of its sequences, and to the messages for their connections.

samples of a chunk     d1 d2 x -       tokens up to the first wrong draft, and the one sampled in its place
delta of a sequence    [d1, d2, x]     with log-probabilities, and the reason if the sequence has ended
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
"""The engine's thread calls this with (connection or EVERYBODY, output). It must not block."""

EVERYBODY = -1
"""The connection number that stands for all connections."""


class StepResults:
    """Collects the results of a step for each connection and sends them. One thread uses it."""

    def __init__(self, emit: Emit, eos_token_ids: Collection[int]) -> None:
        self._emit = emit
        self._eos_token_ids = frozenset(eos_token_ids)
        self._deltas: defaultdict[int, list[SequenceDelta]] = defaultdict(list)
        """For each connection, the results that it has not been told yet."""
        self._was_ready = False
        """The readiness that all connections were told last."""
        self.num_generated_tokens = 0

    def append(self, chunk: Chunk, samples: list[Sample]) -> tuple[list[int], str | None]:
        """Add the samples of a chunk to its sequence, up to the first wrong draft and including the token in
        its place.

        Return the new tokens and the finish reason, which is None while the sequence goes on.
        """
        sequence = chunk.sequence
        token_ids: list[int] = []
        is_first = not sequence.is_resumed and not sequence.output_ids
        # With max_tokens 0 only the prompt is scored.
        is_wanted = len(sequence.output_ids) < sequence.params.max_tokens
        finish_reason = None if is_wanted else "length"
        for index, sample in enumerate(samples):
            if finish_reason is not None:
                break
            token_ids.append(sample.token_id)
            sequence.output_ids.append(sample.token_id)
            finish_reason = self._finish_reason(sequence, sample.token_id)
            if chunk.drafts[index : index + 1] != (sample.token_id,):
                break
            sequence.num_computed += 1
        self.num_generated_tokens += len(token_ids)
        self._deltas[sequence.owner].append(
            SequenceDelta(
                sequence_id=sequence.sequence_id,
                token_ids=token_ids,
                logprobs=[
                    sample.logprobs for sample in samples[: len(token_ids)] if sample.logprobs is not None
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
        """End a sequence that cannot be computed. Its connection may try again if the only problem was a
        missing holder of experts."""
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
        """Whether some connection has not been told its latest results, or the engine's present readiness."""
        return bool(self._deltas) or is_ready != self._was_ready

    def tell(self, load: Load, is_ready: bool) -> None:
        """If the readiness has changed, tell all connections; then tell each connection its results."""
        if is_ready != self._was_ready:
            self._was_ready = is_ready
            self._emit(EVERYBODY, StepOutput(deltas=[], load=load, is_ready=is_ready))
        for connection, deltas in self._deltas.items():
            self._emit(connection, StepOutput(deltas=deltas, load=load, is_ready=is_ready))
        self._deltas.clear()

    def _finish_reason(self, sequence: Sequence, token_id: int) -> str | None:
        """The finish reason of a sequence that ends with `token_id`, or None if the sequence goes on."""
        params = sequence.params
        is_eos = token_id in self._eos_token_ids and not params.ignore_eos
        if is_eos or token_id in params.stop_token_ids:
            return "stop"
        return "length" if len(sequence.output_ids) >= params.max_tokens else None
