import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from cluster.config.request_limits import Limits
from cluster.errors import ContextLengthExceeded, InvalidRequest
from cluster.openai.fields.sampling import SamplingFields
from cluster.openai.parsing.parse import parse_chat, parse_completion
from cluster.openai.prompts.model_context import ModelContext, ModelLimits
from cluster.openai.prompts.prepare import derived_seed, prepare
from cluster.openai.request import SequenceRequest
from cluster.tokenizer import Tokenizer
from tests.openai.small_tokenizers import END_ID, EOS_ID, byte_level, model_context

LIMITS = Limits()
TOKENIZER = byte_level()
MODEL = model_context(TOKENIZER, max_model_len=40)


def _completion(
    model: ModelContext = MODEL, draw_seed: Callable[[], int] = lambda: 77, **fields: Any
) -> tuple[SequenceRequest, ...]:
    return prepare(parse_completion({"prompt": "solve x", **fields}, LIMITS), model, LIMITS, draw_seed)


def _chat(model: ModelContext = MODEL, **fields: Any) -> tuple[SequenceRequest, ...]:
    body = {"messages": [{"role": "user", "content": "solve x"}], **fields}
    return prepare(parse_chat(body, LIMITS), model, LIMITS, lambda: 77)


def test_a_text_is_tokenized_and_gets_the_defaults() -> None:
    (sequence,) = _completion()
    assert sequence.prompt_ids == tuple(TOKENIZER.encode("solve x"))
    params = sequence.params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.seed) == (
        16,
        1.0,
        1.0,
        0,
        77,
    )
    assert params.stop_token_ids == (EOS_ID, END_ID)
    assert (params.logprobs, params.prompt_logprobs) == (None, None)
    assert not sequence.is_prompt_only


def test_a_chat_goes_through_the_template_and_may_fill_the_context() -> None:
    (sequence,) = _chat()
    text = "<|user|>\nsolve x<|end|>\n<|assistant|>\n"
    assert TOKENIZER.decode(sequence.prompt_ids, skip_special_tokens=False) == text
    assert sequence.params.max_tokens == 40 - len(sequence.prompt_ids)


def test_a_completion_without_max_tokens_fits_what_is_left() -> None:
    (sequence,) = _completion(prompt=[9] * 35)
    assert sequence.params.max_tokens == 5


def test_generation_config_fills_what_the_request_leaves_open() -> None:
    defaults = SamplingFields(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1)
    limits = ModelLimits(max_model_len=40, vocab_size=512, defaults=defaults)
    model = ModelContext(tokenizer=TOKENIZER, template=None, limits=limits)
    (sequence,) = _completion(model)
    params = sequence.params
    assert (params.temperature, params.top_p, params.top_k) == (0.6, 0.9, 20)
    assert (params.min_p, params.repetition_penalty) == (0.1, 1.1)
    (sequence,) = _completion(model, temperature=0, top_k=-1, top_p=1, min_p=0, repetition_penalty=1)
    params = sequence.params
    assert (params.temperature, params.top_p, params.top_k) == (0.0, 1.0, 0)
    assert (params.min_p, params.repetition_penalty) == (0.0, 1.0)


def test_choices_are_numbered_over_prompts_and_share_their_prompt() -> None:
    sequences = _completion(prompt=["a", "b"], n=3, seed=5)
    assert [sequence.index for sequence in sequences] == [0, 1, 2, 3, 4, 5]
    assert [sequence.prompt_index for sequence in sequences] == [0, 0, 0, 1, 1, 1]
    seeds = [sequence.params.seed for sequence in sequences]
    assert seeds[:3] == seeds[3:] == [derived_seed(5, choice) for choice in range(3)]


def test_without_a_seed_each_prompt_draws_one() -> None:
    drawn = itertools.count(100)
    sequences = _completion(prompt=["a", "a"], n=2, draw_seed=lambda: next(drawn))
    assert [sequence.params.seed for sequence in sequences[::2]] == [100, 101]
    assert next(drawn) == 102


@given(seed=st.integers(0, 2**64 - 1))
def test_derived_seeds_differ_and_the_first_is_the_requests_own(seed: int) -> None:
    seeds = [derived_seed(seed, choice) for choice in range(128)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 128
    assert all(0 <= derived < 2**64 for derived in seeds)


def test_lengths_beyond_the_context_name_both_numbers() -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        _completion(prompt=[9] * 30, max_tokens=11)
    assert (
        str(caught.value) == "max_tokens: 30 prompt tokens and max_tokens 11 are more than the context of 40"
    )
    assert caught.value.param == "max_tokens"
    with pytest.raises(ContextLengthExceeded, match=r"prompt: 40 tokens leave no room .* context of 40"):
        _completion(prompt=[9] * 40)
    with pytest.raises(ContextLengthExceeded) as caught:
        _chat(messages=[{"role": "user", "content": "abcd" * 20}])
    assert caught.value.param == "messages"
    assert _completion(prompt=[9] * 30, max_tokens=10)[0].params.max_tokens == 10


def test_a_prompt_may_be_bounded_below_the_context() -> None:
    limits = Limits(max_prompt_tokens=5)
    for body, parse, name in (
        ({"prompt": [9] * 6}, parse_completion, "prompt"),
        ({"messages": [{"role": "user", "content": "solve x"}]}, parse_chat, "messages"),
    ):
        with pytest.raises(ContextLengthExceeded, match=f"{name}: .* tokens are more than 5") as caught:
            prepare(parse(body, limits), MODEL, limits, lambda: 77)
        assert caught.value.param == name
    truncated = parse_completion({"prompt": [9] * 6, "truncate_prompt_tokens": 5}, limits)
    assert len(prepare(truncated, MODEL, limits, lambda: 77)) == 1


def test_ids_must_be_in_the_models_vocabulary() -> None:
    size = MODEL.limits.vocab_size
    _completion(prompt=[size - 1], stop_token_ids=[size - 1], logit_bias={str(size - 1): 1})
    for param, fields in (
        ("prompt", {"prompt": [1, size]}),
        ("stop_token_ids", {"stop_token_ids": [size]}),
        ("logit_bias", {"logit_bias": {str(size): 1}}),
    ):
        with pytest.raises(
            InvalidRequest, match=rf"{param}: token id {size} is outside the vocabulary \[0, {size}\)"
        ):
            _completion(**fields)


def test_min_tokens_may_not_exceed_max_tokens() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens: 20 is above max_tokens 16"):
        _completion(min_tokens=20)


def test_a_prompt_that_is_empty_once_tokenized_is_refused() -> None:
    blank = ModelContext(tokenizer=_eats_everything(), template=None, limits=MODEL.limits)
    with pytest.raises(InvalidRequest, match="prompt: is empty once tokenized"):
        _completion(blank, prompt="anything")


def test_only_the_last_tokens_of_a_truncated_prompt_stay() -> None:
    (sequence,) = _completion(prompt=list(range(10, 30)), truncate_prompt_tokens=4, echo=True)
    assert sequence.prompt_ids == (26, 27, 28, 29)
    assert sequence.echo_text == TOKENIZER.decode([26, 27, 28, 29])
    (sequence,) = _completion(prompt=[9] * 100, truncate_prompt_tokens=-1, max_tokens=8)
    assert len(sequence.prompt_ids) == 32
    (sequence,) = _completion(prompt=[9] * 100, truncate_prompt_tokens=-1)
    assert (len(sequence.prompt_ids), sequence.params.max_tokens) == (39, 1)


def test_ignore_eos_leaves_only_the_requests_own_stop_tokens() -> None:
    assert _completion(stop_token_ids=[50])[0].params.stop_token_ids == (50, EOS_ID, END_ID)
    params = _completion(stop_token_ids=[50], ignore_eos=True)[0].params
    assert (params.stop_token_ids, params.ignore_eos) == ((50,), True)


def test_echo_gives_the_prompt_and_its_logprobs() -> None:
    (sequence,) = _completion(echo=True, logprobs=2)
    assert sequence.echo_text == "solve x"
    assert (sequence.params.logprobs, sequence.params.prompt_logprobs) == (2, 2)
    assert _completion(echo=True, logprobs=2, prompt_logprobs=5)[0].params.prompt_logprobs == 5
    assert _completion(logprobs=2)[0].params.prompt_logprobs is None
    assert _completion(prompt=[20, 21], echo=True)[0].echo_text == TOKENIZER.decode([20, 21])


def test_max_tokens_zero_still_lets_the_engine_make_one_token() -> None:
    (sequence,) = _completion(echo=True, max_tokens=0, logprobs=0)
    assert sequence.is_prompt_only
    assert sequence.params.max_tokens == 1


def test_chat_echo_gives_the_message_that_is_continued() -> None:
    messages = [{"role": "user", "content": "solve x"}, {"role": "assistant", "content": "x = "}]
    (sequence,) = _chat(messages=messages, continue_final_message=True, echo=True)
    assert sequence.echo_text == "x = "
    assert TOKENIZER.decode(sequence.prompt_ids, skip_special_tokens=False).endswith("<|assistant|>\nx = ")
    assert _chat(echo=True)[0].echo_text == ""


def test_without_a_template_there_is_no_chat() -> None:
    model = ModelContext(tokenizer=TOKENIZER, template=None, limits=MODEL.limits)
    with pytest.raises(InvalidRequest, match="messages: the served model has no chat template"):
        _chat(model)


def _eats_everything() -> Tokenizer:
    backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    backend.normalizer = normalizers.Replace("anything", "")
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, {}, None)
