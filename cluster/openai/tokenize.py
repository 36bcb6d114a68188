"""/tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import InvalidRequest
from cluster.openai.limits import Limits
from cluster.openai.parsing.conversation import parse_conversation
from cluster.openai.parsing.fields import Fields
from cluster.openai.parsing.parse import IGNORED, checked_ids
from cluster.openai.parsing.ranges import MAX_MODEL_CHARS
from cluster.openai.prompts.model_context import ModelContext
from cluster.openai.prompts.prepare import chat_prompt, checked_prompt_ids
from cluster.openai.request import ChatInput

UNSUPPORTED: dict[str, tuple[object, ...]] = {"chat_template": (), "tools": (), "mm_processor_kwargs": ()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeRequest:
    """Text or conversation to turn into token ids; exactly one of `prompt` and `chat` is there."""

    model: str | None
    prompt: str | None = None
    chat: ChatInput | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class DetokenizeRequest:
    """Token ids to turn into text."""

    model: str | None
    token_ids: tuple[int, ...]


def parse_tokenize(body: object, limits: Limits) -> TokenizeRequest:
    """The body of /tokenize, with either `prompt` or `messages`. Raises InvalidRequest."""
    fields = Fields(body)
    if fields.has("prompt") == fields.has("messages"):
        raise InvalidRequest("prompt: expected either prompt or messages", "prompt")
    is_chat = fields.has("messages")
    request = TokenizeRequest(
        model=fields.text("model", MAX_MODEL_CHARS),
        prompt=None if is_chat else fields.text("prompt", limits.max_prompt_chars),
        chat=parse_conversation(fields, limits) if is_chat else None,
        add_special_tokens=fields.boolean("add_special_tokens", not is_chat),
        return_token_strs=fields.boolean("return_token_strs", False),
    )
    fields.finish(UNSUPPORTED, IGNORED)
    return request


def parse_detokenize(body: object, limits: Limits) -> DetokenizeRequest:
    """The body of /detokenize. Raises InvalidRequest."""
    fields = Fields(body)
    fields.required("tokens")
    token_ids = checked_ids("tokens", fields.items("tokens", limits.max_prompt_chars))
    request = DetokenizeRequest(model=fields.text("model", MAX_MODEL_CHARS), token_ids=token_ids)
    fields.finish({}, IGNORED)
    return request


def tokenized(request: TokenizeRequest, model: ModelContext) -> list[int]:
    """The token ids that generation would be given. Raises InvalidRequest where the chat template refuses."""
    text = request.prompt if request.chat is None else chat_prompt(request.chat, model)
    return model.tokenizer.encode(text or "", request.add_special_tokens)


def detokenized(request: DetokenizeRequest, model: ModelContext) -> str:
    """The text, special tokens included. Raises InvalidRequest for an id outside the vocabulary."""
    checked_prompt_ids("tokens", request.token_ids, model)
    return model.tokenizer.decode(request.token_ids, skip_special_tokens=False)


def tokenize_response(
    request: TokenizeRequest, token_ids: Sequence[int], model: ModelContext
) -> dict[str, Any]:
    """The answer of /tokenize."""
    token_strs = [model.tokenizer.token_string(token_id) for token_id in token_ids]
    return {
        "count": len(token_ids),
        "max_model_len": model.limits.max_model_len,
        "tokens": list(token_ids),
        "token_strs": token_strs if request.return_token_strs else None,
    }


def detokenize_response(text: str) -> dict[str, Any]:
    """The answer of /detokenize."""
    return {"prompt": text}
