"""/v1/models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.errors import ModelNotFound
from cluster.openai.prompts.model_context import ModelLimits


def check_model(model: str | None, served_names: Sequence[str]) -> str:
    """The name to answer under: the one asked for, or the first served one where none was. Raises ModelNotFound."""
    if model is None:
        return served_names[0]
    if model not in served_names:
        raise ModelNotFound(model)
    return model


def model_card(name: str, created: int, limits: ModelLimits) -> dict[str, Any]:
    """One model, as /v1/models/{name} answers.

    OpenAI's card says nothing of a model's limits. The context has the name that it has in vLLM, the vocabulary the one
    that it has in llama.cpp.
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
    """The answer of /v1/models."""
    return {"object": "list", "data": [model_card(name, created, limits) for name in served_names]}
