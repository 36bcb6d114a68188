"""What quantized experts cost the embedded model: `python -m tests.expert.quantization_quality`.

Conversations with fresh questions (training never showed them), in bfloat16. The perplexity is over the tokens that
the assistant says; agreement is how often the most likely token there is the one of the unquantized model, and how many
greedy answers are the same to the last token.
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
"""Of the experts, and of attention's projections and the head."""
_TURNS = (1, 2, 3, 4, 30)
"""Questions of a conversation, in turn; 30 are far behind the crossing."""
_MAX_ANSWER_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What one way of holding the experts makes of all conversations."""

    logprobs: tuple[float, ...]
    """Of every token of every answer."""
    likeliest: tuple[int, ...]
    """At the same places."""
    answers: tuple[tuple[int, ...], ...]
    """Greedy ones to each conversation's last question."""

    @property
    def perplexity(self) -> float:
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


def measure(quantization: str | None, dense_kind: str | None, num_conversations: int) -> Quality:
    """The embedded model over the same conversations every time."""
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
            f"experts {kind or 'bfloat16'}, dense {dense_kind or 'bfloat16'}: perplexity {found.perplexity:.4f} over {len(found.logprobs)} tokens, likeliest token "
            f"the same {same_tokens / len(whole.likeliest):.2%}, greedy answers the same {same_answers} of {len(whole.answers)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
