"""Measures how many fresh questions the model answers to the letter.

Decoding is greedy, with one full forward pass per token and no cache.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from actors.checkpoint.tiny_training.model import TinyPhiMoE
from actors.checkpoint.tiny_training.questions import Case
from actors.checkpoint.tiny_training.tokenizer import ChatEncoder

MAX_ANSWER_TOKENS = 24
_ROWS_PER_PASS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Numbers of questions asked and answered rightly, by (kind, "short" or "long")."""

    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    right: Counter[tuple[str, str]] = field(default_factory=Counter)
    mistakes: list[tuple[str, str, list[int]]] = field(default_factory=list)
    """Question, right answer, and the token ids that the model gave instead."""

    def share(self) -> float:
        return self.right.total() / self.asked.total()

    def __str__(self) -> str:
        parts = [
            f"{kind}/{regime} {self.right[kind, regime]}/{n}"
            for (kind, regime), n in sorted(self.asked.items())
        ]
        return f"{self.share():.1%}: " + ", ".join(parts)


@torch.inference_mode()
def measure_accuracy(model: TinyPhiMoE, encoder: ChatEncoder, cases: Sequence[Case]) -> Accuracy:
    """Answer every case and count the right answers.

    The rope factors of a sequence depend on its total length, so they may change while it grows.
    """
    prompts = []
    for case in cases:
        ids = [] if case.system is None else encoder.system(case.system)
        for turn in case.history:
            ids += encoder.turn(turn)[0]
        prompts.append(ids + encoder.prompt(case.question.text))

    accuracy = Accuracy()
    by_length = sorted(range(len(cases)), key=lambda index: len(prompts[index]))
    for start in range(0, len(cases), _ROWS_PER_PASS):
        chosen = by_length[start : start + _ROWS_PER_PASS]
        answers = _answer(model, [prompts[index] for index in chosen], encoder.end_id)
        for index, answer in zip(chosen, answers, strict=True):
            question = cases[index].question
            regime = "long" if len(prompts[index]) > model.shape.crossing else "short"
            accuracy.asked[question.kind, regime] += 1
            if answer == encoder.answer(question.answer):
                accuracy.right[question.kind, regime] += 1
            else:
                accuracy.mistakes.append((question.text, question.answer, answer))
    return accuracy


def _answer(model: TinyPhiMoE, prompts: list[list[int]], end_id: int) -> list[list[int]]:
    """Return the greedy continuation of each prompt up to and including the end token."""
    rows = [list(prompt) for prompt in prompts]
    open_rows = list(range(len(rows)))
    for _ in range(MAX_ANSWER_TOKENS):
        lengths = torch.tensor([len(rows[index]) for index in open_rows])
        longest = int(lengths.max())
        # Attention is causal, so padding at the right end of a row has no effect.
        ids_BL = torch.tensor([rows[index] + [0] * (longest - len(rows[index])) for index in open_rows])
        wanted_BL = torch.arange(longest) == lengths[:, None] - 1
        logits, _ = model(ids_BL, lengths > model.shape.crossing, wanted_BL)
        for index, token in zip(open_rows, logits.argmax(dim=-1).tolist(), strict=True):
            rows[index].append(token)
        open_rows = [index for index in open_rows if rows[index][-1] != end_id]
        if not open_rows:
            break
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
