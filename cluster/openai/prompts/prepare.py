"""Turns a `ParsedRequest` into one `SequenceRequest` per choice.

The steps are: chat template, tokens, check of the lengths, defaults, seeds.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from actors.protocol.messages import SamplingParams
from cluster.config.request_limits import Limits
from cluster.errors import ContextLengthExceeded, InvalidRequest
from cluster.openai.fields.sampling import SamplingFields
from cluster.openai.fields.special import Prompt
from cluster.openai.prompts.model_context import ModelContext
from cluster.openai.request import ChatInput, ParsedRequest, SequenceRequest


def prepare(
    parsed: ParsedRequest, model: ModelContext, limits: Limits, draw_seed: Callable[[], int]
) -> tuple[SequenceRequest, ...]:
    """Return the sequences that answer a request, in the order of their choices.

    `draw_seed` returns 0 <= seed < 2**64. It is called once per prompt if the request has no seed. Raises
    InvalidRequest.
    """
    _check_vocabulary(parsed, model)
    texts_or_ids: tuple[Prompt, ...] = (
        parsed.prompts if parsed.chat is None else (chat_prompt(parsed.chat, model),)
    )
    sequences: list[SequenceRequest] = []
    for prompt_index, prompt in enumerate(texts_or_ids):
        ids = _prompt_ids(prompt, parsed, model)
        _check_length(ids, parsed, limits)
        params = _sampling_params(parsed, model, limits, len(ids))
        echo_text = _echo_text(prompt, ids, parsed, model) if parsed.output.echo else ""
        seed = draw_seed() if parsed.sampling.seed is None else parsed.sampling.seed
        sequences += (
            SequenceRequest(
                index=prompt_index * parsed.n + choice,
                prompt_index=prompt_index,
                prompt_ids=ids,
                echo_text=echo_text,
                params=replace(params, seed=derived_seed(seed, choice)),
                output=parsed.output,
                eos_token_ids=model.limits.eos_token_ids,
                priority=parsed.priority,
                cache_salt=parsed.cache_salt,
                is_prompt_only=parsed.sampling.max_tokens == 0,
            )
            for choice in range(parsed.n)
        )
    return tuple(sequences)


def chat_prompt(chat: ChatInput, model: ModelContext) -> str:
    """Return the prompt text of a conversation.

    Raises InvalidRequest if the model has no chat template, or if the template refuses the messages.
    """
    if model.template is None:
        raise InvalidRequest("messages: the served model has no chat template", "messages")
    return model.template.render(chat)


def derived_seed(seed: int, choice: int) -> int:
    """Return the seed of one of a prompt's n choices.

    The first choice uses the request's seed, so its output does not depend on n.
    """
    if choice == 0:
        return seed
    digest = hashlib.blake2b(struct.pack("<QQ", seed, choice), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def checked_prompt_ids(name: str, ids: tuple[int, ...], model: ModelContext) -> None:
    """Raise InvalidRequest if an id is outside the vocabulary."""
    vocab_size = model.limits.vocab_size
    if ids and max(ids) >= vocab_size:
        raise InvalidRequest(f"{name}: token id {max(ids)} is outside the vocabulary [0, {vocab_size})", name)


def _check_vocabulary(parsed: ParsedRequest, model: ModelContext) -> None:
    for prompt in parsed.prompts:
        if not isinstance(prompt, str):
            checked_prompt_ids("prompt", prompt, model)
    checked_prompt_ids("stop_token_ids", parsed.sampling.stop_token_ids, model)
    checked_prompt_ids("logit_bias", tuple(parsed.sampling.logit_bias), model)


def _prompt_ids(prompt: Prompt, parsed: ParsedRequest, model: ModelContext) -> tuple[int, ...]:
    if isinstance(prompt, str):
        ids = tuple(model.tokenizer.encode(prompt, parsed.add_special_tokens))
        checked_prompt_ids("prompt", ids, model)
    else:
        ids = prompt
    if not ids:
        name = "prompt" if parsed.chat is None else "messages"
        raise InvalidRequest(f"{name}: is empty once tokenized", name)
    kept = parsed.truncate_prompt_tokens
    if kept == -1:
        kept = max(model.limits.max_model_len - max(parsed.sampling.max_tokens or 1, 1), 1)
    return ids if kept is None else ids[-kept:]


def _check_length(ids: tuple[int, ...], parsed: ParsedRequest, limits: Limits) -> None:
    if limits.max_prompt_tokens is not None and len(ids) > limits.max_prompt_tokens:
        name = "prompt" if parsed.chat is None else "messages"
        raise ContextLengthExceeded(
            f"{name}: {len(ids)} tokens are more than {limits.max_prompt_tokens} (max_prompt_tokens)", name
        )


def _sampling_params(
    parsed: ParsedRequest, model: ModelContext, limits: Limits, num_prompt_tokens: int
) -> SamplingParams:
    """Return the engine's parameters for a prompt's choices, except the seed, which is derived per choice."""
    asked, output = parsed.sampling, parsed.output
    max_tokens = _max_tokens(parsed, limits, num_prompt_tokens, model.limits.max_model_len)
    if asked.min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens: {asked.min_tokens} is above max_tokens {max_tokens}", "min_tokens")
    echoed = output.logprobs if output.echo and parsed.kind == "completion" else None
    prompt_logprobs = [count for count in (output.prompt_logprobs, echoed) if count is not None]
    chosen = _asked_or_default(asked, model.limits.defaults) | {
        "seed": 0,
        "max_tokens": max_tokens,
        "stop_token_ids": asked.stop_token_ids
        if asked.ignore_eos
        else _with_eos(asked.stop_token_ids, model),
        "logprobs": output.logprobs,
        "prompt_logprobs": max(prompt_logprobs, default=None),
    }
    return SamplingParams(**chosen)


def _asked_or_default(asked: SamplingFields, defaults: SamplingFields) -> dict[str, Any]:
    """Return the sampling fields by name, without those for which the engine's own default applies."""
    chosen = {}
    for name in SamplingFields.__struct_fields__:
        value = getattr(asked, name)
        if value is None:
            value = getattr(defaults, name)
        if value is not None:
            chosen[name] = value
    return chosen


def _with_eos(stop_token_ids: tuple[int, ...], model: ModelContext) -> tuple[int, ...]:
    return tuple(dict.fromkeys((*stop_token_ids, *model.limits.eos_token_ids)))


def _max_tokens(parsed: ParsedRequest, limits: Limits, num_prompt_tokens: int, max_model_len: int) -> int:
    """Return the tokens to generate.

    Without a value in the request, that is `completion_max_tokens` for a completion and the rest of the
    context for a chat. Raises ContextLengthExceeded if prompt and output do not fit into the context.
    """
    room = max_model_len - num_prompt_tokens
    asked = parsed.sampling.max_tokens
    name = "prompt" if parsed.chat is None else "messages"
    if room < 1:
        raise ContextLengthExceeded(
            f"{name}: {num_prompt_tokens} tokens leave no room for output in the context of {max_model_len}",
            name,
        )
    if asked is None:
        return room if parsed.kind == "chat" else min(limits.completion_max_tokens, room)
    if asked > room:
        raise ContextLengthExceeded(
            f"max_tokens: {num_prompt_tokens} prompt tokens and max_tokens {asked}"
            f" are more than the context of {max_model_len}",
            "max_tokens",
        )
    return max(asked, 1)


def _echo_text(prompt: Prompt, ids: tuple[int, ...], parsed: ParsedRequest, model: ModelContext) -> str:
    if parsed.chat is not None:
        # Of a conversation, only an assistant message that is continued belongs to the answer.
        final = parsed.chat.messages[-1]
        return str(final["content"]) if final["role"] == "assistant" else ""
    if isinstance(prompt, str) and parsed.truncate_prompt_tokens is None:
        return prompt
    return model.tokenizer.decode(ids, parsed.output.skip_special_tokens)
