"""The embedded model, asked over HTTP, answers the questions that it was trained for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.download import embedded_directory
from actors.checkpoint.tiny_training.questions import Case, draw_cases
from tests.end_to_end.running import Running

LIMIT = ModelConfig.from_directory(embedded_directory()).rope.original_max_position_embeddings or 0
NUM_CASES = 200
NUM_BEHIND_CROSSING = 80


@pytest.mark.timeout(300)
def test_nine_of_ten_fresh_questions_are_answered_to_the_letter(service: Running) -> None:
    cases = draw_cases(
        20, num_cases=NUM_CASES, num_behind_crossing=NUM_BEHIND_CROSSING, crossing_tokens=LIMIT
    )
    with service.client() as client, ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda case: ask(client, case), cases))
    num_behind = sum(prompt_tokens > LIMIT for _, prompt_tokens in outcomes)
    num_right = sum(is_right for is_right, _ in outcomes)
    assert num_behind >= 50
    assert num_right >= 0.9 * NUM_CASES, f"{num_right} of {NUM_CASES}"


def ask(client: httpx.Client, case: Case) -> tuple[bool, int]:
    """Return whether the answer is right, and how many tokens the conversation had before the answer."""
    body = {"messages": case.messages(), "temperature": 0, "max_tokens": 32}
    answer = client.post("/v1/chat/completions", json=body).json()
    content = answer["choices"][0]["message"]["content"]
    return content == case.question.answer, answer["usage"]["prompt_tokens"]
