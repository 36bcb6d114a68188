from datetime import datetime
from typing import Any

import pytest

from cluster.errors import InvalidRequest
from cluster.openai.prompts.chat_template import ChatTemplate
from cluster.openai.request import ChatInput
from tests.openai.small_tokenizers import CHAT_TEMPLATE

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def _chat(*messages: tuple[str, str], **fields: Any) -> ChatInput:
    return ChatInput(
        messages=tuple({"role": role, "content": content} for role, content in messages), **fields
    )


def _render(source: str, chat: ChatInput | None = None) -> str:
    now = datetime(2026, 7, 28, 9, 5)
    return ChatTemplate(source, TOKENS, lambda: now).render(chat or _chat(("user", "hi")))


def test_a_conversation_is_rendered() -> None:
    chat = _chat(("system", "be brief"), ("user", "hi"))
    assert _render(CHAT_TEMPLATE, chat) == "<|system|>\nbe brief<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\n"
    silent = _chat(("user", "hi"), add_generation_prompt=False)
    assert _render(CHAT_TEMPLATE, silent) == "<|user|>\nhi<|end|>\n"


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, CHAT_TEMPLATE.replace("['content'] +", "['content'] | trim +")]
)
def test_a_continued_message_stays_open(template: str) -> None:
    chat = _chat(
        ("user", "the sum"),
        ("assistant", "the sum "),
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert _render(template, chat) == "<|user|>\nthe sum<|end|>\n<|assistant|>\nthe sum "


def test_a_message_that_is_not_shown_cannot_be_continued() -> None:
    chat = _chat(("user", "a"), ("assistant", "b"), add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidRequest) as caught:
        _render("{{ messages[0]['content'] }}", chat)
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ strftime_now('%d %b %Y') }}", "28 Jul 2026"),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}", ""),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hi"),
        ("{{ mood }}{{ tools }}{{ missing is defined }}", "calmNoneFalse"),
    ],
)
def test_templates_find_what_they_are_written_for(source: str, expected: str) -> None:
    assert _render(source, _chat(("user", "hi"), template_kwargs={"mood": "calm"})) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ strftime_now.__code__.co_consts }}",
        "{{ ('{0.__class__.__init__.__globals__}').format(messages) }}",
        "{{ messages.append(1) }}",
        "{% set x = messages[0].update({'role': 'system'}) %}",
        "{{ range(10000000) | list }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _render(source)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ messages | attr('__class__') }}",
    ],
)
def test_attributes_that_are_not_the_templates_own_read_as_undefined(source: str) -> None:
    assert _render(source) == ""


def test_messages_are_never_read_as_templates() -> None:
    evil = "{{ 7 * 7 }}{% for x in y %}"
    assert evil in _render(CHAT_TEMPLATE, _chat(("user", evil)))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5]['content'] + 'x' }}", "undefined|no element"),
        ("{{ messages[0]['content'] + 1 }}", "concatenate"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
def test_what_a_template_refuses_is_the_clients_fault(source: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        _render(source)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{{", "{% if %}", "{% unknown %}"])
def test_a_template_that_is_not_jinja_is_found_when_it_is_loaded(source: str) -> None:
    with pytest.raises(ValueError, match="the chat template cannot be compiled"):
        ChatTemplate(source, TOKENS)
