import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

import actors.checkpoint
from actors.errors import ConfigError, UnreadableFileError
from cluster.tokenizer import IncrementalDecoder, Tokenizer
from tests.openai.small_tokenizers import (
    SPECIAL,
    byte_fallback,
    byte_fallback_backend,
    byte_level,
    byte_level_backend,
    write_checkpoint_files,
)

TINY = Path(actors.checkpoint.__file__).parent / "tiny"
TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback(), "tiny": Tokenizer.load(TINY)}
BACKENDS = {"byte_level": byte_level_backend(), "byte_fallback": byte_fallback_backend()}

kinds = pytest.mark.parametrize("kind", TOKENIZERS)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    "the stop\n 😀é中x", max_size=40
)
ids = st.lists(st.integers(0, 600), max_size=40)
cuts = st.lists(st.integers(0, 40), max_size=10)


def _pieces(token_ids: Sequence[int], places: list[int]) -> list[Sequence[int]]:
    bounds = [0, *sorted(min(place, len(token_ids)) for place in places), len(token_ids)]
    return [token_ids[start:end] for start, end in pairwise(bounds)]


@kinds
@given(token_ids=ids, places=cuts, skip=st.booleans())
def test_pieces_add_up_to_the_whole(kind: str, token_ids: list[int], places: list[int], skip: bool) -> None:
    decoder = IncrementalDecoder(TOKENIZERS[kind], (), skip)
    pieces = [decoder.push(piece) for piece in _pieces(token_ids, places)]
    assert "".join(pieces) + decoder.flush() == TOKENIZERS[kind].decode(token_ids, skip)


@kinds
@given(text=texts, places=cuts)
def test_no_piece_has_a_part_of_a_character(kind: str, text: str, places: list[int]) -> None:
    decoder = IncrementalDecoder(TOKENIZERS[kind], (), False)
    token_ids = TOKENIZERS[kind].encode(text, False)
    streamed = ""
    for piece in _pieces(token_ids, places):
        streamed += decoder.push(piece)
        assert TOKENIZERS[kind].decode(token_ids, False).startswith(streamed)
    assert decoder.flush() == ""


@pytest.mark.parametrize("kind", BACKENDS)
@given(text=texts)
def test_texts_decode_as_the_library_decodes_them(kind: str, text: str) -> None:
    token_ids = TOKENIZERS[kind].encode(text)
    assert token_ids == BACKENDS[kind].encode(text).ids
    assert TOKENIZERS[kind].decode(token_ids) == BACKENDS[kind].decode(token_ids)
    assert TOKENIZERS[kind].decode(token_ids, False) == BACKENDS[kind].decode(
        token_ids, skip_special_tokens=False
    )


@given(token_ids=ids, skip=st.booleans())
def test_any_byte_level_tokens_decode_as_the_library_decodes_them(token_ids: list[int], skip: bool) -> None:
    expected = BACKENDS["byte_level"].decode(token_ids, skip_special_tokens=skip)
    assert TOKENIZERS["byte_level"].decode(token_ids, skip) == expected


@given(prompt=texts.filter(bool), token_ids=ids)
def test_an_output_continues_its_prompt(prompt: str, token_ids: list[int]) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    prompt_ids = tokenizer.encode(prompt)
    if prompt_ids[-1] in tokenizer.special_ids:
        return
    decoder = IncrementalDecoder(tokenizer, prompt_ids)
    output = decoder.push(token_ids) + decoder.flush()
    assert tokenizer.decode(prompt_ids) + output == tokenizer.decode([*prompt_ids, *token_ids])


def test_the_space_before_the_first_word_depends_on_what_is_before() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    word = tokenizer.encode("yes")
    assert [tokenizer.token_string(token_id) for token_id in word] == ["\u2581yes"]
    assert IncrementalDecoder(tokenizer, ()).push(word) == "yes"
    assert IncrementalDecoder(tokenizer, tokenizer.encode("no")).push(word) == " yes"
    assert IncrementalDecoder(tokenizer, tokenizer.encode("no<|assistant|>")).push(word) == "yes"
    assert IncrementalDecoder(tokenizer, ()).push([*word, *word]) == "yes yes"
    assert IncrementalDecoder(tokenizer, ()).push(tokenizer.encode("  yes")) == "  yes"


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_character_that_the_prompt_began_is_completed(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    token_ids = tokenizer.encode("x😀", False)
    decoder = IncrementalDecoder(tokenizer, token_ids[:-1])
    assert decoder.is_inside_character
    assert decoder.push(token_ids[-1:]) == "😀"
    assert not decoder.is_inside_character


def test_special_tokens_are_shown_on_request() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    token_ids = tokenizer.encode("yes<|end|>no")
    assert tokenizer.decode(token_ids) == "yesno"
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == "yes<|end|>no"
    assert tokenizer.special_ids == frozenset(range(len(SPECIAL)))


def test_single_tokens_have_a_text_and_bytes() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    first, *_, last = tokenizer.encode("yes😀")
    assert (tokenizer.token_text(first), tokenizer.token_bytes(first)) == (" yes", b" yes")
    assert (tokenizer.token_text(last), tokenizer.token_bytes(last)) == ("bytes:\\x80", b"\x80")
    beyond = BACKENDS["byte_fallback"].get_vocab_size()
    assert (tokenizer.token_text(beyond), tokenizer.token_bytes(beyond), tokenizer.token_string(beyond)) == (
        "",
        b"",
        "",
    )


def test_a_directory_is_loaded_with_its_special_tokens_and_template(tmp_path: Path) -> None:
    write_checkpoint_files(tmp_path, byte_level_backend())
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.chat_template is not None
    (tmp_path / "chat_template.jinja").write_text("a file of its own wins")
    assert Tokenizer.load(tmp_path).chat_template == "a file of its own wins"


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    write_checkpoint_files(tmp_path, byte_level_backend())
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert Tokenizer.load(tmp_path).chat_template == "yes"


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path) -> None:
    backend = byte_level_backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    write_checkpoint_files(tmp_path, backend)
    assert len(Tokenizer.load(tmp_path).encode("a b c d e f")) == 11


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"tokenizer\.json: is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UnreadableFileError, match=r"tokenizer\.json: is not a tokenizer"):
        Tokenizer.load(tmp_path)
    backend = byte_level_backend()
    backend.decoder = decoders.WordPiece()
    write_checkpoint_files(tmp_path, backend)
    with pytest.raises(ConfigError, match=r"decoder is .*WordPiece.*, expected ByteLevel or byte fallback"):
        Tokenizer.load(tmp_path)
    write_checkpoint_files(tmp_path, byte_level_backend())
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UnreadableFileError, match=r"tokenizer_config\.json: does not hold a JSON object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 3}')
    with pytest.raises(ConfigError, match="chat_template is 3, expected a string"):
        Tokenizer.load(tmp_path)
