"""Tests what parsing, documents and gRPC rely on in the declaration of fields."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from actors.protocol.messages import SamplingParams
from cluster.ingress.admin_bodies import OPERATION_BODIES, WATCH
from cluster.kinds.objects import Object
from cluster.openai.fields.bodies import CHAT, COMPLETION, DETOKENIZE, ECHO, TOKENIZE_CHAT, TOKENIZE_TEXT
from cluster.openai.fields.sampling import SamplingFields

BODIES = [COMPLETION, ECHO, CHAT, TOKENIZE_TEXT, TOKENIZE_CHAT, DETOKENIZE, *OPERATION_BODIES.values(), WATCH]


@pytest.mark.parametrize("body", BODIES)
def test_every_field_has_one_sentence_of_documentation(body: Object[Any]) -> None:
    for field in body.fields:
        assert field.doc.endswith(".") and "\n" not in field.doc, field.name


def test_every_sampling_field_reaches_the_dense_actor_with_the_same_default() -> None:
    carried = {item.name: item for item in msgspec.structs.fields(SamplingParams)}
    for field in msgspec.structs.fields(SamplingFields):
        assert field.name in carried
        if field.default is not None and field.default is not msgspec.NODEFAULT:
            assert carried[field.name].default == field.default, field.name


def test_negative_values_have_one_form() -> None:
    assert SamplingFields(top_k=-1, seed=-1) == SamplingFields(top_k=0, seed=2**64 - 1)
    assert SamplingFields(stop_token_ids=(3, 2, 3)).stop_token_ids == (3, 2)
