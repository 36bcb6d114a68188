"""Asks a server which model it serves, before a conversation or a measurement begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import aiohttp
import msgspec

from cluster.commands.http_client import HTTP_ERRORS, error_message, get, reason


class ServerError(Exception):
    """A server does not answer or names no model; the message names the server and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model of `/v1/models`. A limit is None if the server does not report it."""

    name: str
    max_model_len: int | None = None
    """Most tokens of a prompt and its answer together."""
    vocab_size: int | None = None
    """All token ids are below this number."""


class _ModelCard(msgspec.Struct):
    """The fields that are read from an entry of `/v1/models`. Only `id` is the same for all servers."""

    id: str
    max_model_len: Any = None
    meta: Any = None


class _ModelList(msgspec.Struct):
    data: Annotated[list[_ModelCard], msgspec.Meta(min_length=1)]


async def ask_served_model(client: aiohttp.ClientSession, url: str, name: str | None = None) -> ServedModel:
    """The model of that name, or the first of `/v1/models`, with its limits.

    This project and vLLM report the context as `max_model_len`; this project and llama.cpp report the
    vocabulary as `meta.n_vocab`. llama.cpp divides its context among slots and reports the share of one slot
    at `/props`.

    Raises ServerError if no name is given and the server names no model.
    """
    try:
        cards = await _model_cards(client, url)
    except ServerError:
        if name is None:
            raise
        return ServedModel(name=name)
    card = cards[0] if name is None else next((card for card in cards if card.id == name), _ModelCard(name))
    max_model_len = _count(card.max_model_len)
    if max_model_len is None and card.meta is not None:
        max_model_len = await _slot_context(client, url) or _count(card.meta, "n_ctx_train")
    return ServedModel(name=card.id, max_model_len=max_model_len, vocab_size=_count(card.meta, "n_vocab"))


async def _model_cards(client: aiohttp.ClientSession, url: str) -> list[_ModelCard]:
    """The entries of `/v1/models`, at least one. Raises ServerError."""
    address = f"{url}/v1/models"
    try:
        reply = await get(client, address)
    except HTTP_ERRORS as error:
        raise ServerError(f"{address}: {reason(error)}") from error
    if reply.status != 200:
        raise ServerError(f"{address}: HTTP {reply.status}: {error_message(reply.body)}")
    try:
        return msgspec.json.decode(reply.body, type=_ModelList).data
    except msgspec.MsgspecError as error:
        raise ServerError(f"{address} does not name a model") from error


async def _slot_context(client: aiohttp.ClientSession, url: str) -> int | None:
    """Tokens of one slot of a llama.cpp server; None if `/props` does not say."""
    try:
        reply = await get(client, f"{url}/props")
        return _count(msgspec.json.decode(reply.body), "default_generation_settings", "n_ctx")
    except (*HTTP_ERRORS, msgspec.MsgspecError):
        return None


def _count(content: Any, *path: str) -> int | None:
    """The number above 0 at this path of a JSON value; None if there is none."""
    for name in path:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content if isinstance(content, int) and not isinstance(content, bool) and content > 0 else None
