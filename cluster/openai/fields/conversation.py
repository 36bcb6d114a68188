"""The fields of conversations: messages, the parts of messages, and the other inputs of the chat template."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from cluster.kinds.containers import ByJsonType, ListOf
from cluster.kinds.kind import Limit
from cluster.kinds.objects import Object, Variants
from cluster.kinds.scalars import Boolean, Choice, Text
from cluster.openai.fields.special import TemplateVariables


class TextPart(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a message's content."""

    type: Annotated[str, Choice({"text": "text"}), "The kind of the part."]
    text: Annotated[str, Text(Limit("max_prompt_chars")), "The part's text."]


class MessageFields(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: Annotated[
        str,
        Choice({"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}),
        'Who speaks; "developer" is the newer name of "system".',
    ]
    content: Annotated[
        str | tuple[TextPart, ...],
        ByJsonType(
            {
                str: Text(Limit("max_prompt_chars")),
                list: ListOf(Variants("type", {"text": Object(TextPart)}), empty="is an empty list"),
            },
            "a string or a list of parts",
        ),
        "The message itself: a text, or parts; each part becomes a line.",
    ]
    name: Annotated[str | None, Text(256), "The speaker's name, for templates that show it."] = None


RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
"""Names that chat_template_kwargs may not replace."""
# A client may send back a message as it got it. Such a message has further fields; values that say nothing
# are accepted.
_MESSAGE = Object(
    MessageFields,
    unsupported={
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "reasoning": (),
        "reasoning_content": (),
        "refusal": (),
        "tool_calls": ([],),
    },
)


class ConversationFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that become the input of the chat template."""

    messages: Annotated[
        tuple[MessageFields, ...],
        ListOf(_MESSAGE, Limit("max_messages"), empty="is empty"),
        "The conversation so far.",
    ]
    add_generation_prompt: Annotated[
        bool | None,
        Boolean(),
        "End the prompt where the answer begins; by default the opposite of continue_final_message.",
    ] = None
    continue_final_message: Annotated[
        bool, Boolean(), "Continue the last message, the assistant's, instead of beginning a new one."
    ] = False
    chat_template_kwargs: Annotated[
        dict[str, Any], TemplateVariables(RESERVED), "More variables for the chat template."
    ] = {}
