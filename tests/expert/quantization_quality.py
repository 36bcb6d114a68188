"""Measures how much quality quantization costs: `python -m tests.expert.quantization_quality`.

The embedded model answers conversations with fresh questions, which were not in its training, in bfloat16.
The perplexity is that of the assistant's tokens. Agreement with the unquantized model is the share of these
tokens with the same most likely token, and the number of greedy answers that are the same to the last token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer

from actors.checkpoint.download import embedded_directory
from actors.checkpoint.tiny_training.questions import draw_fresh_question
from actors.checkpoint.tiny_training.tokenizer import ChatEncoder
from tests.dense.local_engine import LocalEngine, greedy

KINDS = (
    (None, None),
    ("int8", None),
    ("int4", None),
    (None, "int8"),
    ("int8", "int8"),
    ("int4", "int8"),
    ("int4", "int4"),
)
"""Quantization of the experts, and of attention's projections and the head."""
_TURNS = (1, 2, 3, 4, 30)
"""Number of questions, conversation by conversation; 30 questions reach far beyond the crossing."""
_MAX_ANSWER_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The results of one way of quantization, over all conversations."""

    logprobs: tuple[float, ...]
    """The logprob of every token of every answer."""
    likeliest: tuple[int, ...]
    """The most likely token at the same places."""
    answers: tuple[tuple[int, ...], ...]
    """The greedy answer to the last question of each conversation."""

    @property
    def perplexity(self) -> float:
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


def measure(quantization: str | None, dense_kind: str | None, num_conversations: int) -> Quality:
    """Run the embedded model over conversations, which are the same in every call."""
    directory = embedded_directory()
    encoder = ChatEncoder(Tokenizer.from_file(str(directory / "tokenizer.json")))
    engine = LocalEngine(
        directory,
        num_blocks=8192,
        max_batch_tokens=2048,
        dtype=torch.bfloat16,
        quantization=quantization,
        dense_kind=dense_kind,
    )
    wanted_of: list[list[bool]] = []
    for number in range(num_conversations):
        rng = Random(number)
        ids: list[int] = []
        wanted: list[bool] = []
        for _ in range(_TURNS[number % len(_TURNS)]):
            question = draw_fresh_question(rng)
            before = len(ids)
            turn_ids, turn_wanted = encoder.turn(question)
            ids += turn_ids
            wanted += turn_wanted
        engine.submit(f"score-{number}", ids, greedy(0, prompt_logprobs=1))
        prompt_ids = ids[:before] + encoder.prompt(question.text)
        engine.submit(
            f"ask-{number}", prompt_ids, greedy(_MAX_ANSWER_TOKENS, ignore_eos=False, logprobs=None)
        )
        wanted_of.append(wanted)
    engine.run()
    logprobs, likeliest = [], []
    for number, wanted in enumerate(wanted_of):
        entries = engine.deltas[f"score-{number}"][0].prompt_logprobs
        assert entries is not None
        for entry, is_wanted in zip(entries, wanted[1:], strict=True):
            if is_wanted:
                logprobs.append(entry.logprob)
                likeliest.append(entry.top[0][0])
    return Quality(
        logprobs=tuple(logprobs),
        likeliest=tuple(likeliest),
        answers=tuple(tuple(engine.tokens(f"ask-{number}")) for number in range(num_conversations)),
    )


def main() -> None:
    whole = measure(None, None, 400)
    for kind, dense_kind in KINDS:
        found = whole if kind is dense_kind is None else measure(kind, dense_kind, 400)
        same_tokens = sum(a == b for a, b in zip(found.likeliest, whole.likeliest, strict=True))
        same_answers = sum(a == b for a, b in zip(found.answers, whole.answers, strict=True))
        print(
            f"experts {kind or 'bfloat16'}, dense {dense_kind or 'bfloat16'}: "
            f"perplexity {found.perplexity:.4f} over {len(found.logprobs)} tokens, "
            f"likeliest token the same {same_tokens / len(whole.likeliest):.2%}, "
            f"greedy answers the same {same_answers} of {len(whole.answers)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
