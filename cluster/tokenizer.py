"""Converts text to token ids, and token ids to text, either all at once or as tokens arrive.

Decoding works on bytes. Every token stands for fixed bytes, and the text is all these bytes decoded as UTF-8,
with U+FFFD for bytes that are not UTF-8. This holds for both kinds of BPE that PhiMoE checkpoints use:
byte-level BPE, and BPE with byte fallback and U+2581 for the space. The pieces of a stream therefore always
add up to the text of the whole, and the cost of a token does not depend on the length of the text before it.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from actors.errors import ConfigError, UnreadableFileError

_TAIL_TOKENS = 8
"""Number of last prompt tokens that are decoded. A UTF-8 character has at most 4 bytes, so after this tail
the decoder is in the same state as after the whole prompt."""


class Tokenizer:
    """The tokenizer of one checkpoint directory. It is immutable and may be used from several threads."""

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], chat_template: str | None
    ) -> None:
        """Wrap a tokenizer of the library. `special_tokens` maps names such as "bos_token" to tokens.

        Raises ValueError for a decoder that is neither byte-level nor byte fallback.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        to_bytes, self.num_stripped_spaces = _byte_reading(msgspec.json.decode(backend.to_str())["decoder"])
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self._strings: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        self._bytes = [b""] * len(self._strings)
        for string, token_id in vocabulary.items():
            self._strings[token_id] = string
            self._bytes[token_id] = to_bytes(string)
        self.special_tokens = dict(special_tokens)
        self.special_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.chat_template = chat_template

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Load the tokenizer of a checkpoint directory.

        Read tokenizer.json and, if they exist, tokenizer_config.json, special_tokens_map.json and
        chat_template.jinja. Raises UnreadableFileError or ConfigError, which name the file and what is wrong
        with it.
        """
        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise UnreadableFileError(str(path), "is missing; a checkpoint needs its fast tokenizer")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises bare Exception for all that it cannot read.
            raise UnreadableFileError(str(path), f"is not a tokenizer ({error})") from error
        config = _read_object(directory / "tokenizer_config.json")
        special_tokens = _special_tokens({**_read_object(directory / "special_tokens_map.json"), **config})
        try:
            return cls(backend, special_tokens, _chat_template(directory, config))
        except ValueError as error:
            raise ConfigError(str(path), "decoder", str(error), "ByteLevel or byte fallback") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text. It must be encodable as UTF-8, that is, have no lone surrogates."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids that begin a text. Ids without a token give no text."""
        decoder = IncrementalDecoder(self, (), skip_special_tokens)
        return decoder.push(token_ids) + decoder.flush()

    def token_string(self, token_id: int) -> str:
        """Return the token as the vocabulary spells it; empty for an id without a token."""
        return (self._strings[token_id] or "") if 0 <= token_id < len(self._strings) else ""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that the token adds to a text; empty for an id without a token."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def token_text(self, token_id: int) -> str:
        """Return the text of the token alone; "bytes:\\xf0\\x9f" if its bytes are a part of a character."""
        token_bytes = self.token_bytes(token_id)
        try:
            return token_bytes.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


class IncrementalDecoder:
    """Turns the tokens of one output into text as they arrive, in whole characters only.

    A text begins after a special token or without any token before it. There the space that some tokenizers
    put before the first word is dropped. After the text of a prompt, the output continues that text.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_tail_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        """`prompt_tail_ids` are the tokens before the first pushed token, or the last few of them."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_strippable = 0
        if not prompt_tail_ids or prompt_tail_ids[-1] in tokenizer.special_ids:
            self._num_strippable = tokenizer.num_stripped_spaces
        else:
            self.push(prompt_tail_ids[-_TAIL_TOKENS:])

    @property
    def is_inside_character(self) -> bool:
        """Whether the bytes so far end within a character, whose text is then still to come."""
        return bool(self._utf8.getstate()[0])

    def push(self, token_ids: Sequence[int]) -> str:
        """Take further tokens, and return the text that they complete."""
        token_bytes = self._tokenizer.token_bytes
        new = b"".join(token_bytes(token_id) for token_id in token_ids if token_id not in self._skipped)
        if self._num_strippable and new:
            num_spaces = min(len(new) - len(new.lstrip(b" ")), self._num_strippable)
            new = new[num_spaces:]
            self._num_strippable = 0 if new else self._num_strippable - num_spaces
        return self._utf8.decode(new)

    def flush(self) -> str:
        """Return the text that is left at the end: U+FFFD for an incomplete character, else nothing."""
        return self._utf8.decode(b"", final=True)


def _byte_reading(decoder: dict[str, Any] | None) -> tuple[Callable[[str], bytes], int]:
    """Return a function from a token's string to its bytes, and how many spaces a text loses at its start.

    Both follow from the decoder in tokenizer.json. Raises ValueError for a decoder of another kind.
    """
    steps = _flattened(decoder)
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return _byte_level_reading(), 0
    replacements: list[tuple[str, str]] = []
    num_stripped = 0
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
                replacements.append((pattern, content))
            case {"type": "Metaspace", "replacement": str(pattern)}:
                replacements.append((pattern, " "))
                num_stripped = int(step.get("prepend_scheme", "always") != "never")
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                num_stripped = start
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case _:
                raise ValueError(f"{msgspec.json.encode(step).decode()}")
    has_fallback = any(step["type"] == "ByteFallback" for step in steps)
    return lambda string: _fallback_bytes(string, replacements, has_fallback), num_stripped


def _flattened(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        raise ValueError("null")
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _flattened(part)]


def _fallback_bytes(string: str, replacements: list[tuple[str, str]], has_fallback: bool) -> bytes:
    for pattern, content in replacements:
        string = string.replace(pattern, content)
    if has_fallback and len(string) == 6 and string.startswith("<0x") and string.endswith(">"):
        try:
            return bytes([int(string[3:5], 16)])
        except ValueError:
            pass
    return string.encode()


def _byte_level_reading() -> Callable[[str], bytes]:
    """Return the function from a token's string to its bytes for GPT-2's alphabet.

    In this alphabet printable bytes stand for themselves, and the code points from 256 on for the other bytes
    in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    to_byte = {chr(byte): byte for byte in printable} | {
        chr(256 + rank): byte for rank, byte in enumerate(others)
    }

    def reading(string: str) -> bytes:
        # An added token may hold other characters. Its bytes are then its own UTF-8 text.
        return (
            bytes(to_byte[char] for char in string)
            if all(map(to_byte.__contains__, string))
            else string.encode()
        )

    return reading


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableFileError(str(path), f"is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UnreadableFileError(str(path), "does not hold a JSON object")
    return content


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return the named tokens of tokenizer_config.json: strings, or objects with the string as "content"."""
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    """Return the chat template, or None.

    It is chat_template.jinja if the file exists, else the string in tokenizer_config.json, else the entry
    "default" of the list there.
    """
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableFileError(str(path), f"cannot be read ({error})") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template if {"name", "template"} <= {*entry}}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ConfigError(
            str(directory / "tokenizer_config.json"), "chat_template", repr(template)[:80], "a string"
        )
    return template
