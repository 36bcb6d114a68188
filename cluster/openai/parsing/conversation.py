"""The fields of a conversation -> `ChatInput`, the input of the chat template."""

from __future__ import annotations

from typing import Any

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest
from cluster.openai.fields.conversation import ConversationFields, MessageFields
from cluster.openai.request import ChatInput


def chat_input(fields: ConversationFields, limits: Limits) -> ChatInput:
    """Return the input of the chat template.

    Raises InvalidRequest if the messages are too long together, or if fields contradict each other.
    """
    messages = tuple([_template_message(message) for message in fields.messages])
    num_chars = sum([len(message["content"]) for message in messages])
    if num_chars > limits.max_prompt_chars:
        raise InvalidRequest(
            f"messages: {num_chars} characters are more than {limits.max_prompt_chars}", "messages"
        )
    is_continued, add_generation_prompt = fields.continue_final_message, fields.add_generation_prompt
    if add_generation_prompt is None:
        add_generation_prompt = not is_continued
    if is_continued and add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message: is not possible with add_generation_prompt", "continue_final_message"
        )
    return ChatInput(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=is_continued,
        template_kwargs=fields.chat_template_kwargs,
    )


def _template_message(message: MessageFields) -> dict[str, Any]:
    """Return a message in the form that chat templates expect; each part of it becomes a line."""
    content = message.content
    if not isinstance(content, str):
        content = "\n".join([part.text for part in content])
    if message.name is None:
        return {"role": message.role, "content": content}
    return {"role": message.role, "content": content, "name": message.name}
