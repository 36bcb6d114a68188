import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.request_limits import Limits
from cluster.errors import ClientError, InvalidRequest, MalformedBody, UnsupportedParameter
from cluster.openai.encoding import decode_body
from cluster.openai.fields.bodies import IGNORED, UNSUPPORTED
from cluster.openai.fields.output import OutputOptions, StreamOptions
from cluster.openai.fields.sampling import SamplingFields
from cluster.openai.parsing.parse import parse_chat, parse_completion, parse_timeout_header

LIMITS = Limits()
USER = {"role": "user", "content": "hi"}
COMPLETION = {"model": "phimoe", "prompt": "hi"}
CHAT = {"model": "phimoe", "messages": [USER]}


def _completion(**fields: Any) -> Any:
    return parse_completion({**COMPLETION, **fields}, LIMITS)


def _chat(**fields: Any) -> Any:
    return parse_chat({**CHAT, **fields}, LIMITS)


# Field, value, what the message says. The same for both endpoints.
BAD_FIELDS = [
    ("model", 3, "model: 3 is not a string"),
    ("temperature", 3.5, "temperature: 3.5 is outside [0, 2]"),
    ("temperature", -0.1, "temperature: -0.1 is outside [0, 2]"),
    ("temperature", "hot", "temperature: 'hot' is not a number in [0, 2]"),
    ("temperature", True, "temperature: true is not a number in [0, 2]"),
    ("temperature", math.nan, "temperature: nan is not a number in [0, 2]"),
    ("temperature", math.inf, "temperature: inf is outside [0, 2]"),
    ("temperature", [1], "temperature: a list of 1 is not a number in [0, 2]"),
    ("top_p", 0, "top_p: 0 is outside (0, 1]"),
    ("top_p", 1.01, "top_p: 1.01 is outside (0, 1]"),
    ("top_k", -2, "top_k: -2 is outside [-1, 2147483647]"),
    ("top_k", 1.5, "top_k: 1.5 is not an integer in [-1, 2147483647]"),
    ("min_p", 1.5, "min_p: 1.5 is outside [0, 1]"),
    ("frequency_penalty", 2.5, "frequency_penalty: 2.5 is outside [-2, 2]"),
    ("presence_penalty", -3, "presence_penalty: -3 is outside [-2, 2]"),
    ("repetition_penalty", 0, "repetition_penalty: 0 is outside (0, 10]"),
    ("max_tokens", 0, "max_tokens: 0 is outside [1, 2147483647]"),
    ("max_tokens", "5", "max_tokens: '5' is not an integer in [1, 2147483647]"),
    ("max_tokens", True, "max_tokens: true is not an integer in [1, 2147483647]"),
    ("max_tokens", 10**40, "max_tokens: an integer of 133 bits is outside [1, 2147483647]"),
    ("max_completion_tokens", -1, "max_completion_tokens: -1 is outside [1, 2147483647]"),
    ("min_tokens", -1, "min_tokens: -1 is outside [0, 2147483647]"),
    ("n", 0, "n: 0 is outside [1, 128]"),
    ("n", 129, "n: 129 is outside [1, 128]"),
    ("n", False, "n: false is not an integer in [1, 128]"),
    ("best_of", 2, "best_of: 2 is not supported by this server unless n is the same"),
    ("seed", 2**64, "seed: 18446744073709551616 is outside [-9223372036854775808, 18446744073709551615]"),
    ("stop", 7, "stop: 7 is not a string"),
    ("stop", "", "stop: '' would stop everything; expected strings of at least one character"),
    ("stop", ["a", ""], "stop: '' would stop everything; expected strings of at least one character"),
    ("stop", ["a", 1], "stop: 1 is not a string"),
    ("stop", ["a"] * 33, "stop: 33 strings are more than 32"),
    ("stop", "x" * 1025, "stop: 1025 characters are more than 1024"),
    ("stop_token_ids", 7, "stop_token_ids: 7 is not a list"),
    ("stop_token_ids", [True], "stop_token_ids: true is not a token id"),
    ("stop_token_ids", [-1], "stop_token_ids: -1 is not a token id"),
    ("include_stop_str_in_output", 1, "include_stop_str_in_output: 1 is not true or false"),
    ("ignore_eos", "yes", "ignore_eos: 'yes' is not true or false"),
    ("logit_bias", [1], "logit_bias: a list of 1 is not an object"),
    ("logit_bias", {"a": 1}, "logit_bias: 'a' is not a token id"),
    ("logit_bias", {"-1": 1}, "logit_bias: '-1' is not a token id"),
    ("logit_bias", {"1": 101}, "logit_bias: 101 is outside [-100, 100]"),
    ("logit_bias", {"1": None}, "logit_bias: null is not a number in [-100, 100]"),
    ("logit_bias", {str(i): 1 for i in range(1025)}, "logit_bias: 1025 entries are more than 1024"),
    ("prompt_logprobs", 21, "prompt_logprobs: 21 is outside [0, 20]"),
    ("echo", 1, "echo: 1 is not true or false"),
    ("stream", "true", "stream: 'true' is not true or false"),
    ("stream_options", {"include_usage": True}, "stream_options: is only possible with stream"),
    ("skip_special_tokens", 0, "skip_special_tokens: 0 is not true or false"),
    ("spaces_between_special_tokens", False,
     "spaces_between_special_tokens: false is not supported by this server"),
    ("truncate_prompt_tokens", 0, "truncate_prompt_tokens: 0 leaves nothing of the prompt"),
    ("truncate_prompt_tokens", -2, "truncate_prompt_tokens: -2 is outside [-1, 2147483647]"),
    ("add_special_tokens", "no", "add_special_tokens: 'no' is not true or false"),
    ("request_id", "a\nb", "request_id: 'a\\nb' is not printable ASCII"),
    ("request_id", "", "request_id: '' is not printable ASCII"),
    ("request_id", "x" * 129, "request_id: 129 characters are more than 128"),
    ("return_token_ids", 1, "return_token_ids: 1 is not true or false"),
    ("return_tokens_as_token_ids", 1, "return_tokens_as_token_ids: 1 is not true or false"),
    ("tools", [], "tools: a list of 0 is not supported by this server"),
    ("tools", [{}], "tools: a list of 1 is not supported by this server"),
    ("tool_choice", "auto", "tool_choice: 'auto' is not supported by this server"),
    ("response_format", {"type": "json_object"},
     "response_format: an object is not supported by this server"),
    ("structured_outputs", {"regex": "a"}, "structured_outputs: an object is not supported by this server"),
    ("use_beam_search", True, "use_beam_search: true is not supported by this server"),
    ("no_repeat_ngram_size", 2, "no_repeat_ngram_size: 2 is not supported by this server"),
    ("no_repeat_ngram_size", False, "no_repeat_ngram_size: false is not supported by this server"),
    ("typical_p", 0.5, "typical_p: 0.5 is not supported by this server"),
    ("bad_words", ["a"], "bad_words: a list of 1 is not supported by this server"),
    ("allowed_token_ids", [1], "allowed_token_ids: a list of 1 is not supported by this server"),
    ("cache_salt", "", "cache_salt: '' is no salt; expected at least one character"),
    ("cache_salt", "a" * 257, "cache_salt: 257 characters are more than 256"),
    ("priority", 1001, "priority: 1001 is outside [-1000, 1000]"),
    ("priority", 0.5, "priority: 0.5 is not an integer in [-1000, 1000]"),
    ("timeout", 0, "timeout: 0 is outside (0, 86400]"),
    ("timeout", "5s", "timeout: '5s' is not a number in (0, 86400]"),
    ("length_penalty", 2.0, "length_penalty: 2.0 is not supported by this server"),
    ("suffix", "end", "suffix: 'end' is not supported by this server"),
    ("temprature", 1, "temprature: is not a parameter that this server knows; did you mean temperature?"),
    ("frobnicate", None, "frobnicate: is not a parameter that this server knows"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "message"), BAD_FIELDS, ids=[row[2][:40] for row in BAD_FIELDS])
def test_bad_fields_are_named_with_their_value(field: str, value: Any, message: str) -> None:
    for parse in (_completion, _chat):
        with pytest.raises(InvalidRequest) as caught:
            parse(**{field: value})
        assert (str(caught.value), caught.value.param) == (message, field)


BAD_PROMPTS: list[tuple[Any, str]] = [
    (None, "prompt: is required"),
    ("", "prompt: is empty"),
    ([], "prompt: is empty"),
    ([""], "prompt: is empty"),
    ([[]], "prompt: is empty"),
    (["a", ""], "prompt: is empty"),
    (5, "prompt: 5 is not a string, a list of strings, token ids or a list of token ids"),
    ({"a": 1}, "prompt: an object is not a string, a list of strings, token ids or a list of token ids"),
    (["a", [1]], "prompt: mixes texts and token ids"),
    ([1, "a"], "prompt: 'a' is not a token id"),
    ([1, True], "prompt: true is not a token id"),
    ([1.0], "prompt: 1.0 is not a string"),
    ([[1, -1]], "prompt: -1 is not a token id"),
    ([None], "prompt: null is not a string"),
    ("\ud800", "prompt: holds half a surrogate pair at character 0"),
    (["a"] * 1025, "prompt: 1025 prompts are more than 1024"),
]


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS, ids=[row[1][:30] for row in BAD_PROMPTS])
def test_bad_prompts_are_refused(prompt: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _completion(prompt=prompt)
    assert (str(caught.value), caught.value.param) == (message, "prompt")


BAD_MESSAGES: list[tuple[Any, str, str]] = [
    (None, "messages", "messages: is required"),
    ([], "messages", "messages: is empty"),
    ("hi", "messages", "messages: 'hi' is not a list"),
    (["hi"], "messages[0]", "messages[0]: 'hi' is not an object"),
    ([{"content": "hi"}], "messages[0].role", "messages[0].role: is required"),
    ([USER, {"role": "tool", "content": "4"}], "messages[1].role",
     "messages[1].role: 'tool' is not one of system, developer, user, assistant"),
    ([{"role": "user"}], "messages[0].content", "messages[0].content: is required"),
    ([{"role": "user", "content": None}], "messages[0].content", "messages[0].content: is required"),
    ([{"role": "user", "content": 4}], "messages[0].content",
     "messages[0].content: 4 is not a string or a list of parts"),
    ([{"role": "user", "content": []}], "messages[0].content", "messages[0].content: is an empty list"),
    ([{"role": "user", "content": "\udc00"}], "messages[0].content",
     "messages[0].content: holds half a surrogate pair at character 0"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
     "messages[0].content[0].type",
     "messages[0].content[0].type: 'image_url' is not supported by this server, expected 'text'"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text",
     "messages[0].content[0].text: is required"),
    ([{"role": "user", "content": "hi", "tool_calls": [{}]}], "messages[0].tool_calls",
     "messages[0].tool_calls: a list of 1 is not supported by this server"),
    ([{**USER, "colour": "red"}], "messages[0].colour",
     "messages[0].colour: is not a parameter that this server knows"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "param", "message"), BAD_MESSAGES, ids=[row[2][:40] for row in BAD_MESSAGES]
)
def test_bad_messages_are_refused(messages: Any, param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _chat(messages=messages)
    assert (str(caught.value), caught.value.param) == (message, param)


BAD_COMBINATIONS: list[tuple[Any, dict[str, Any], str]] = [
    (_completion, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    (_completion, {"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
    (_completion, {"prompt": ["a"] * 1000, "n": 100}, "n"),
    (_completion, {"logprobs": True}, "logprobs"),
    (_completion, {"logprobs": 21}, "logprobs"),
    (_completion, {"n": 2, "best_of": 3}, "best_of"),
    (_completion, {"messages": [USER]}, "messages"),
    (_completion, {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    (_completion, {"stream": True, "stream_options": {"colour": 1}}, "stream_options.colour"),
    (_completion, {"stream": True, "stream_options": 1}, "stream_options"),
    (_chat, {"prompt": "a"}, "prompt"),
    (_chat, {"logprobs": 1}, "logprobs"),
    (_chat, {"top_logprobs": 2}, "top_logprobs"),
    (_chat, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (_chat, {"max_tokens": 0, "echo": True}, "max_tokens"),
    (_chat, {"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    (_chat, {"chat_template": "{{ 1 }}"}, "chat_template"),
    (_chat, {"chat_template_kwargs": 1}, "chat_template_kwargs"),
    (_chat, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
]


@pytest.mark.parametrize(
    ("parse", "fields", "param"), BAD_COMBINATIONS, ids=[str(row[1])[:60] for row in BAD_COMBINATIONS]
)
def test_bad_combinations_are_refused(parse: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [[], "text", None, 3], ids=repr)
def test_a_body_must_be_an_object(body: Any) -> None:
    for parse in (parse_completion, parse_chat):
        with pytest.raises(MalformedBody, match="expected a JSON object"):
            parse(body, LIMITS)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"\xff\xfe",
        b'{"a": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b"{} {}",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_bodies_that_are_not_json_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="the body "):
        decode_body(body)


def test_harmless_and_neutral_fields_are_accepted() -> None:
    neutral = {name: value for name, values in UNSUPPORTED.items() for value in values}
    nulls = dict.fromkeys(UNSUPPORTED)
    ignored = dict.fromkeys(IGNORED, "anything")
    for extra in (neutral, nulls, ignored, {"typical_p": 1}, {"n": 2, "best_of": 2}):
        _completion(**extra)
        _chat(**extra)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_fields_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        _chat(**{name: {"some": "wish"}})
    assert caught.value.param == name


def test_a_bare_completion_says_nothing_about_sampling() -> None:
    parsed = _completion()
    assert (parsed.kind, parsed.model, parsed.prompts, parsed.n) == ("completion", "phimoe", ("hi",), 1)
    assert parsed.sampling == SamplingFields()
    assert parsed.output == OutputOptions()
    assert parsed.add_special_tokens and not parsed.stream


def test_every_field_arrives() -> None:
    parsed = _completion(
        max_completion_tokens=9, min_tokens=2, temperature=0, top_p=0.5, top_k=-1, min_p=0.25,
        frequency_penalty=1,
        presence_penalty=-1, repetition_penalty=1.5, seed=-1, stop=["a", "b", "a"], stop_token_ids=[5, 4, 5],
        ignore_eos=True, logit_bias={"7": -100}, logprobs=3, echo=True, stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True}, skip_special_tokens=False,
        include_stop_str_in_output=True, add_special_tokens=False, truncate_prompt_tokens=8,
        request_id="mine",
        return_token_ids=True, return_tokens_as_token_ids=True, n=3,
    )  # fmt: skip
    assert parsed.sampling == SamplingFields(
        max_tokens=9, min_tokens=2, temperature=0.0, top_p=0.5, top_k=0, min_p=0.25, frequency_penalty=1.0,
        presence_penalty=-1.0, repetition_penalty=1.5, seed=2**64 - 1, stop_token_ids=(5, 4), ignore_eos=True,
        logit_bias={7: -100.0},
    )  # fmt: skip
    assert parsed.output == OutputOptions(
        stop=("a", "b"), include_stop_str_in_output=True, skip_special_tokens=False, echo=True, logprobs=3,
        return_token_ids=True, return_tokens_as_token_ids=True,
    )  # fmt: skip
    assert parsed.stream_options == StreamOptions(include_usage=True, continuous_usage_stats=True)
    assert (parsed.n, parsed.truncate_prompt_tokens, parsed.request_id) == (3, 8, "mine")
    assert not parsed.add_special_tokens


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
    ids=repr,
)
def test_prompts_come_in_four_forms(prompt: Any, prompts: Any) -> None:
    assert _completion(prompt=prompt).prompts == prompts


def test_max_tokens_zero_is_for_echo() -> None:
    assert _completion(max_tokens=0, echo=True).sampling.max_tokens == 0


def test_messages_are_normalised() -> None:
    parsed = _chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "name": "Ada",
            },
            {"role": "assistant", "content": "", "refusal": None, "annotations": [], "tool_calls": None},
        ],
        chat_template_kwargs={"mood": "calm"},
    )
    assert parsed.chat.messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb", "name": "Ada"},
        {"role": "assistant", "content": ""},
    )
    assert parsed.chat.template_kwargs == {"mood": "calm"}
    assert parsed.chat.add_generation_prompt
    assert not _chat(continue_final_message=True).chat.add_generation_prompt
    assert not parsed.add_special_tokens


@pytest.mark.parametrize(
    ("fields", "logprobs"), [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 4}, 4)]
)
def test_chat_logprobs_are_a_switch_and_a_count(fields: dict[str, Any], logprobs: int | None) -> None:
    assert _chat(**fields).output.logprobs == logprobs


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
field_names = st.sampled_from(
    sorted({row[0] for row in BAD_FIELDS} | {"logprobs", "top_logprobs", "messages", "prompt"})
)


@given(fields=st.dictionaries(field_names | st.text(max_size=8), json_values, max_size=4))
def test_whatever_comes_is_parsed_or_refused_with_an_encodable_reason(fields: dict[str, Any]) -> None:
    for parse in (_completion, _chat):
        try:
            parse(**fields)
        except ClientError as error:
            assert len(error.message) < 400
            msgspec.json.encode(error.message.encode("utf-8", "replace").decode())


def test_priority_timeout_and_salt_are_read() -> None:
    for parse in (_completion, _chat):
        assert (parse().priority, parse().timeout_seconds, parse().cache_salt) == (0, None, "")
        parsed = parse(priority=-3, timeout=1.5, cache_salt="tenant")
        assert (parsed.priority, parsed.timeout_seconds, parsed.cache_salt) == (-3, 1.5, "tenant")


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_timeout_header_must_be_a_number_of_seconds(text: str) -> None:
    assert parse_timeout_header("2.5", Limits()) == 2.5
    with pytest.raises(InvalidRequest, match="x-request-timeout"):
        parse_timeout_header(text, Limits())
