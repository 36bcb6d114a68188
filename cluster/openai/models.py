"""The answers of /v1/models, and the check of the model's name in a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.errors import ModelNotFound
from cluster.openai.prompts.model_context import ModelLimits


def check_model(model: str | None, served_names: Sequence[str]) -> str:
    """Return the model's name for the answer: `model`, or the first served name if `model` is None.

    Raises ModelNotFound if `model` is not served.
    """
    if model is None:
        return served_names[0]
    if model not in served_names:
        raise ModelNotFound(model)
    return model


def model_card(name: str, created: int, limits: ModelLimits) -> dict[str, Any]:
    """Return the answer of /v1/models/{name}.

    OpenAI's model object has no limits. The context length is named as in vLLM, the vocabulary size as in
    llama.cpp.
    """
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "phimoe-cluster",
        "max_model_len": limits.max_model_len,
        "meta": {"n_vocab": limits.vocab_size},
    }


def models_response(served_names: Sequence[str], created: int, limits: ModelLimits) -> dict[str, Any]:
    """Return the answer of /v1/models."""
    return {"object": "list", "data": [model_card(name, created, limits) for name in served_names]}
