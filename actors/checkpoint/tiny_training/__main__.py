"""Trains the tiny model and writes its checkpoint: `python -m actors.checkpoint.tiny_training OUT`.

Training takes `--minutes`: the learning rate warms up, stays constant and decays over the last part of that
time. The seed determines the text and the first weights. The number of steps that fit into the time depends
on the machine, so two runs differ.
"""

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F

from actors.checkpoint.tiny_training.accuracy import Accuracy, measure_accuracy
from actors.checkpoint.tiny_training.batches import Batch, draw_batches
from actors.checkpoint.tiny_training.export import write_checkpoint
from actors.checkpoint.tiny_training.model import TinyPhiMoE, TinyShape
from actors.checkpoint.tiny_training.questions import draw_cases
from actors.checkpoint.tiny_training.tokenizer import ChatEncoder, train_tokenizer

_BALANCE_WEIGHT = 0.01
_WARM_UP_STEPS = 100
_DECAY_SHARE = 0.35
_REPORT_STEPS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long and how hard to train."""

    minutes: float
    """Wall-clock time of the training itself, over all resumed runs together."""
    checkpoint_minutes: float
    """Time between two checkpoints."""
    batch_tokens: int
    learning_rate: float
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m actors.checkpoint.tiny_training", description=__doc__)
    parser.add_argument("out", type=Path, help="checkpoint directory to write")
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--state", type=Path, help="file that keeps the training state and from which to resume"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    budget = Budget(
        minutes=arguments.minutes,
        checkpoint_minutes=arguments.checkpoint_minutes,
        batch_tokens=arguments.batch_tokens,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    Training(budget, arguments.out, arguments.state).run()


class Training:
    """One run: the model, its optimizer, and the steps and seconds trained so far."""

    def __init__(self, budget: Budget, out: Path, state: Path | None) -> None:
        torch.manual_seed(budget.seed)
        self._budget, self._out, self._state = budget, out, state
        self._tokenizer = train_tokenizer(budget.seed)
        self._encoder = ChatEncoder(self._tokenizer)
        self._model = TinyPhiMoE(TinyShape())
        matrices = [p for p in self._model.parameters() if p.dim() > 1]
        vectors = [p for p in self._model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
        self._step, self._seconds = 0, 0.0
        if state is not None and state.exists():
            self._resume(state)

    def run(self) -> None:
        """Train until the time is up; write a checkpoint every `checkpoint_minutes` and at the end."""
        crossing = self._model.shape.crossing
        # A resumed run must not repeat the text of the run before it.
        rng = Random(f"{self._budget.seed}/{self._step}")
        batches = draw_batches(rng, self._encoder, crossing=crossing, num_tokens=self._budget.batch_tokens)
        saved = self._seconds
        start = time.monotonic() - self._seconds
        losses: list[float] = []
        while self._seconds < 60 * self._budget.minutes:
            losses.append(self._train(next(batches)))
            self._seconds = time.monotonic() - start
            if self._step % _REPORT_STEPS == 0:
                self._report(losses)
                losses = []
            if self._seconds - saved > 60 * self._budget.checkpoint_minutes:
                self._save(num_cases=120)
                saved = self._seconds
        self._save(num_cases=400)

    def _train(self, batch: Batch) -> float:
        """Take one optimizer step and return the loss per token without the balance term."""
        rate = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        logits, balance = self._model(batch.ids_BL, batch.is_long_B, batch.wanted_BL)
        loss = F.cross_entropy(logits, batch.targets())
        (loss + _BALANCE_WEIGHT * balance).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1
        return loss.item()

    def _learning_rate(self) -> float:
        """Return this step's learning rate.

        It rises linearly during warm-up, stays constant, and over the last `_DECAY_SHARE` of the time falls
        along a cosine to a hundredth.
        """
        left = 1 - self._seconds / (60 * self._budget.minutes)
        decay = 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, left) / _DECAY_SHARE))
        return self._budget.learning_rate * min(1.0, (self._step + 1) / _WARM_UP_STEPS) * max(0.01, decay)

    def _report(self, losses: list[float]) -> None:
        minutes = self._seconds / 60
        rate = self._step * self._budget.batch_tokens / max(self._seconds, 1e-9)
        print(
            f"{minutes:6.1f} of {self._budget.minutes:.0f} min  step {self._step:6d}  "
            f"loss {sum(losses) / len(losses):.4f}  {rate:,.0f} tokens/s",
            flush=True,
        )

    def _save(self, num_cases: int) -> None:
        """Write the checkpoint and the state, and print the accuracy on `num_cases` fresh questions."""
        write_checkpoint(self._out, self._model, self._tokenizer)
        if self._state is not None:
            partial = self._state.with_name(self._state.name + ".partial")
            torch.save(
                {
                    "model": self._model.state_dict(),
                    "optimizer": self._optimizer.state_dict(),
                    "step": self._step,
                    "seconds": self._seconds,
                },
                partial,
            )
            partial.replace(self._state)
        print(f"wrote {self._out}; fresh questions right: {self._accuracy(num_cases)}", flush=True)

    def _accuracy(self, num_cases: int) -> Accuracy:
        """Measure the model as written, with weights rounded to bf16; the cases change with the step."""
        rounded = copy.deepcopy(self._model)
        for parameter in rounded.parameters():
            parameter.data = parameter.data.bfloat16().float()
        cases = draw_cases(
            self._budget.seed + self._step,
            num_cases=num_cases,
            num_behind_crossing=num_cases // 3,
            crossing_tokens=rounded.shape.crossing,
        )
        return measure_accuracy(rounded, self._encoder, cases)

    def _resume(self, state: Path) -> None:
        saved = torch.load(state, weights_only=True)
        self._model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._step, self._seconds = saved["step"], saved["seconds"]


if __name__ == "__main__":
    main()
