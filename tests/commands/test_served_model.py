"""Tests what is read from a server's answers about its model."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.commands.http_client import open_client
from cluster.commands.served_model import ServedModel, ServerError, ask_served_model
from tests.commands.bench.server import Behaviour, serving


def ask(url: str, name: str | None = None) -> ServedModel:
    async def run() -> ServedModel:
        async with open_client({}, True, read_seconds=10) as client:
            return await ask_served_model(client, url, name)

    return asyncio.run(run())


PROPS = {"default_generation_settings": {"n_ctx": 512}}


@pytest.mark.parametrize(
    ("card", "props", "max_model_len", "vocab_size"),
    [
        pytest.param({"max_model_len": 4096, "meta": {"n_vocab": 99}}, None, 4096, 99, id="this-project"),
        pytest.param({"max_model_len": 4096}, None, 4096, None, id="vllm"),
        pytest.param({"meta": {"n_vocab": 99, "n_ctx_train": 4096}}, PROPS, 512, 99, id="llama.cpp"),
        pytest.param({"meta": {"n_vocab": 99, "n_ctx_train": 4096}}, None, 4096, 99, id="no-props"),
        pytest.param({}, None, None, None, id="openai"),
        pytest.param({"max_model_len": "many", "meta": [1]}, {"n_ctx": {}}, None, None, id="something-else"),
        pytest.param({"max_model_len": -1, "meta": {"n_vocab": True}}, None, None, None, id="no-counts"),
    ],
)
def test_limits_are_found_where_each_kind_of_server_tells_them(
    card: dict[str, Any], props: dict[str, Any] | None, max_model_len: int | None, vocab_size: int | None
) -> None:
    with serving(Behaviour(limits=card, props=props)) as server:
        found = ask(server.url)
    assert found == ServedModel(name="small", max_model_len=max_model_len, vocab_size=vocab_size)


def test_a_model_that_is_asked_for_by_name_need_not_be_told_of() -> None:
    with serving(Behaviour(limits={"max_model_len": 7})) as server:
        assert ask(server.url, "small").max_model_len == 7
        assert ask(server.url, "other") == ServedModel(name="other")
    assert ask(server.url, "other") == ServedModel(name="other")


def test_a_server_that_does_not_name_a_model_is_named() -> None:
    with serving() as server:
        with pytest.raises(ServerError, match="HTTP 404"):
            ask(f"{server.url}/elsewhere")
        with pytest.raises(ServerError, match="does not name a model"):
            server.behaviour.limits = {"id": None}
            ask(server.url)
    with pytest.raises(ServerError, match=f"{server.url}/v1/models: Connection refused"):
        ask(server.url)
