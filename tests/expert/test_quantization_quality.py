"""The embedded model with quantized experts and dense layers, against the same model without quantization."""

from __future__ import annotations

import pytest

from tests.expert.quantization_quality import Quality, measure

NUM_CONVERSATIONS = 12


@pytest.fixture(scope="module")
def whole() -> Quality:
    return measure(None, None, NUM_CONVERSATIONS)


@pytest.mark.parametrize(
    ("kind", "dense_kind", "worse", "same"),
    [
        pytest.param("int8", None, 1.01, 0.99, id="int8"),
        pytest.param("int4", None, 1.1, 0.95, id="int4"),
        pytest.param("int8", "int8", 1.01, 0.99, id="int8-and-dense"),
        pytest.param("int4", "int4", 1.1, 0.95, id="int4-and-dense"),
    ],
)
def test_answers_stay_and_perplexity_hardly_rises(
    whole: Quality, kind: str, dense_kind: str | None, worse: float, same: float
) -> None:
    found = measure(kind, dense_kind, NUM_CONVERSATIONS)
    assert found.logprobs != whole.logprobs
    assert found.perplexity < worse * whole.perplexity
    tokens = [ours == theirs for ours, theirs in zip(found.likeliest, whole.likeliest, strict=True)]
    assert sum(tokens) >= same * len(tokens)
    answers = [ours == theirs for ours, theirs in zip(found.answers, whole.answers, strict=True)]
    assert sum(answers) >= NUM_CONVERSATIONS - 1
