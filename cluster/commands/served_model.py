"""What a server says that it serves: asked before a conversation or a measurement begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from cluster.commands.http_client import HTTP_ERRORS, error_message, get, reason


class ServerError(Exception):
    """A server cannot be asked, or does not name a model; the text names the server and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The first model of `/v1/models`. Limits are None where the server does not tell them."""

    name: str
    max_model_len: int | None = None
    """Tokens of a prompt and its answer together."""
    vocab_size: int | None = None
    """All token ids are below this number."""


async def ask_served_model(client: aiohttp.ClientSession, url: str) -> ServedModel:
    """The first model of `/v1/models` and its limits. Raises ServerError.

    The vocabulary is `meta.n_vocab`, which llama.cpp and this project tell. The context is `max_model_len`, which vLLM and
    this project tell. llama.cpp divides its context among slots and tells the share of one slot at `/props`.
    """
    address = f"{url}/v1/models"
    try:
        reply = await get(client, address)
    except HTTP_ERRORS as error:
        raise ServerError(f"{address}: {reason(error)}") from error
    if reply.status != 200:
        raise ServerError(f"{address}: HTTP {reply.status}: {error_message(reply.body)}")
    try:
        card = msgspec.json.decode(reply.body)["data"][0]
        name = str(card["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise ServerError(f"{address} does not name a model") from error
    max_model_len = _count(card, "max_model_len")
    if max_model_len is None and "meta" in card:
        max_model_len = await _slot_context(client, url) or _count(card, "meta", "n_ctx_train")
    return ServedModel(name=name, max_model_len=max_model_len, vocab_size=_count(card, "meta", "n_vocab"))


async def _slot_context(client: aiohttp.ClientSession, url: str) -> int | None:
    """Tokens of one slot of a llama.cpp server; None where `/props` does not tell."""
    try:
        reply = await get(client, f"{url}/props")
        return _count(msgspec.json.decode(reply.body), "default_generation_settings", "n_ctx")
    except (*HTTP_ERRORS, msgspec.MsgspecError):
        return None


def _count(content: Any, *path: str) -> int | None:
    """The number above 0 at this path of a JSON value; None where there is none."""
    for name in path:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content if isinstance(content, int) and not isinstance(content, bool) and content > 0 else None
