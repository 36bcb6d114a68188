"""A checkpoint's chat template, which turns conversations into prompt text in jinja2's sandbox.

The template comes with a checkpoint and the messages come from any client, so neither is trusted. The
template can read only what it is given, and a message's text is never interpreted as a template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.errors import InvalidRequest
from cluster.openai.request import ChatInput


class ChatTemplate:
    """One compiled template. It is immutable and may be used from several threads."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], now: Callable[[], datetime] = datetime.now
    ) -> None:
        """`special_tokens` are variables of the template, such as bos_token.

        Raises ValueError if `source` is no valid jinja2 template.
        """
        # Templates are written for the environment and the functions of transformers' apply_chat_template.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda format: now().strftime(format)
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ValueError(f"the chat template cannot be compiled: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, chat: ChatInput) -> str:
        """Return the prompt of a conversation.

        Raises InvalidRequest with the template's reason if the template refuses the conversation.
        """
        if not chat.continue_final_message:
            return self._render(chat, chat.messages)
        *earlier, final = chat.messages
        mark = _unused_mark(chat)
        text = self._render(chat, (*earlier, {**final, "content": final["content"] + mark}))
        end = text.rfind(mark)
        if end < 0:
            raise InvalidRequest(
                "continue_final_message: the chat template does not show the final message",
                "continue_final_message",
            )
        return text[:end]

    def _render(self, chat: ChatInput, messages: tuple[dict[str, Any], ...]) -> str:
        variables = {
            **self._special_tokens,
            **chat.template_kwargs,
            "messages": list(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": chat.add_generation_prompt,
        }
        try:
            return self._template.render(variables)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            # The template itself compiled, so any error here depends on the messages.
            raise InvalidRequest(
                f"messages: the chat template refuses them: {error}"[:500], "messages"
            ) from error
        except (RecursionError, MemoryError) as error:
            raise InvalidRequest("messages: are too large for the chat template", "messages") from error


class _GenerationBlock(Extension):
    """The tags `{% generation %}` and `{% endgeneration %}`, which mark the text that a model is trained on.

    In serving, the tags have no effect on what is between them.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _unused_mark(chat: ChatInput) -> str:
    """Return a string that occurs in no message."""
    mark = "\ue000continue"
    while any(mark in message["content"] for message in chat.messages):
        mark += "\ue000"
    return mark


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write a value as JSON. jinja2's own filter escapes HTML, which is wrong in a prompt."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))
