"""The part of a body that the chat template sees: messages and its switches."""

from __future__ import annotations

from typing import Any

from cluster.errors import InvalidRequest, UnsupportedParameter
from cluster.openai.limits import Limits
from cluster.openai.parsing.fields import Fields, checked_text, shown
from cluster.openai.request import ChatInput

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Role as sent -> role as the template knows it. "developer" is the newer name of "system"."""

RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
"""Names that chat_template_kwargs may not replace."""

MAX_NAME_CHARS = 256
# What clients send back of an answer that they got; none of it says anything when empty.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning": (),
    "reasoning_content": (),
    "refusal": (),
    "tool_calls": ([],),
}


def parse_conversation(fields: Fields, limits: Limits) -> ChatInput:
    """Reads messages, add_generation_prompt, continue_final_message and chat_template_kwargs. Raises InvalidRequest."""
    fields.required("messages")
    items = fields.items("messages", limits.max_messages)
    if not items:
        raise InvalidRequest("messages: is empty", "messages")
    messages = tuple(_message(f"messages[{index}]", item, limits) for index, item in enumerate(items))
    num_chars = sum(len(message["content"]) for message in messages)
    if num_chars > limits.max_prompt_chars:
        raise InvalidRequest(
            f"messages: {num_chars} characters are more than {limits.max_prompt_chars}", "messages"
        )
    is_continued = fields.boolean("continue_final_message", False)
    add_generation_prompt = fields.boolean("add_generation_prompt", not is_continued)
    if is_continued and add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message: is not possible with add_generation_prompt", "continue_final_message"
        )
    return ChatInput(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=is_continued,
        template_kwargs=_template_kwargs(fields),
    )


def _message(name: str, value: object, limits: Limits) -> dict[str, Any]:
    fields = Fields(value, f"{name}.")
    role = checked_text(f"{name}.role", fields.required("role"), MAX_NAME_CHARS)
    if role not in ROLES:
        raise InvalidRequest(f"{name}.role: {shown(role)} is not one of {', '.join(ROLES)}", f"{name}.role")
    message = {
        "role": ROLES[role],
        "content": _content(f"{name}.content", fields.required("content"), limits),
    }
    author = fields.text("name", MAX_NAME_CHARS)
    if author is not None:
        message["name"] = author
    fields.finish(NEUTRAL)
    return message


def _content(name: str, value: object, limits: Limits) -> str:
    """A string, or parts of type "text", which become lines."""
    if isinstance(value, str):
        return checked_text(name, value, limits.max_prompt_chars)
    if not isinstance(value, list):
        raise InvalidRequest(f"{name}: {shown(value)} is not a string or a list of parts", name)
    if not value:
        raise InvalidRequest(f"{name}: is an empty list", name)
    return "\n".join(_part(f"{name}[{index}]", part, limits) for index, part in enumerate(value))


def _part(name: str, value: object, limits: Limits) -> str:
    fields = Fields(value, f"{name}.")
    kind = checked_text(f"{name}.type", fields.required("type"), MAX_NAME_CHARS)
    if kind != "text":
        raise UnsupportedParameter(
            f"{name}.type: {shown(kind)} is not supported by this server, expected 'text'", f"{name}.type"
        )
    text = checked_text(f"{name}.text", fields.required("text"), limits.max_prompt_chars)
    fields.finish()
    return text


def _template_kwargs(fields: Fields) -> dict[str, Any]:
    value = fields.take("chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"chat_template_kwargs: {shown(value)} is not an object", "chat_template_kwargs")
    for key in value:
        if key in RESERVED:
            name = f"chat_template_kwargs.{key}"
            raise InvalidRequest(f"{name}: is not the template's own; send {key} itself", name)
    return value
