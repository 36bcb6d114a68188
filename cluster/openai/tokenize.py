"""The requests and answers of /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest
from cluster.openai.fields.bodies import DETOKENIZE, TOKENIZE_CHAT, TOKENIZE_TEXT, DetokenizeFields
from cluster.openai.parsing.conversation import chat_input
from cluster.openai.prompts.model_context import ModelContext
from cluster.openai.prompts.prepare import chat_prompt, checked_prompt_ids
from cluster.openai.request import ChatInput


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeRequest:
    """A text or a conversation to turn into token ids. Exactly one of `prompt` and `chat` is given."""

    model: str | None
    prompt: str | None = None
    chat: ChatInput | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


def parse_tokenize(body: object, limits: Limits) -> TokenizeRequest:
    """Parse the body of /tokenize, which has either `prompt` or `messages`. Raises InvalidRequest."""
    given = body if isinstance(body, dict) else {}
    is_chat = given.get("messages") is not None
    if isinstance(body, dict) and is_chat == (given.get("prompt") is not None):
        raise InvalidRequest("prompt: expected either prompt or messages", "prompt")
    if is_chat:
        chat = TOKENIZE_CHAT.read("", body, limits)
        return TokenizeRequest(
            model=chat.model,
            chat=chat_input(chat.conversation, limits),
            add_special_tokens=chat.add_special_tokens,
            return_token_strs=chat.return_token_strs,
        )
    text = TOKENIZE_TEXT.read("", body, limits)
    return TokenizeRequest(
        model=text.model,
        prompt=text.text,
        add_special_tokens=text.add_special_tokens,
        return_token_strs=text.return_token_strs,
    )


def parse_detokenize(body: object, limits: Limits) -> DetokenizeFields:
    """Parse the body of /detokenize. Raises InvalidRequest."""
    return DETOKENIZE.read("", body, limits)


def tokenized(request: TokenizeRequest, model: ModelContext) -> list[int]:
    """Return the token ids that generation would start from.

    Raises InvalidRequest if the chat template refuses the conversation.
    """
    text = request.prompt if request.chat is None else chat_prompt(request.chat, model)
    return model.tokenizer.encode(text or "", request.add_special_tokens)


def detokenized(request: DetokenizeFields, model: ModelContext) -> str:
    """Return the text, special tokens included. Raises InvalidRequest for an id outside the vocabulary."""
    checked_prompt_ids("tokens", request.token_ids, model)
    return model.tokenizer.decode(request.token_ids, skip_special_tokens=False)


def tokenize_response(
    request: TokenizeRequest, token_ids: Sequence[int], model: ModelContext
) -> dict[str, Any]:
    """Return the answer of /tokenize."""
    token_strs = [model.tokenizer.token_string(token_id) for token_id in token_ids]
    return {
        "count": len(token_ids),
        "max_model_len": model.limits.max_model_len,
        "tokens": list(token_ids),
        "token_strs": token_strs if request.return_token_strs else None,
    }


def detokenize_response(text: str) -> dict[str, Any]:
    """Return the answer of /detokenize."""
    return {"prompt": text}
