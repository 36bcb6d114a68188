"""Two small tokenizers of the kinds that PhiMoE checkpoints have, and a model context around them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from cluster.openai.prompts.chat_template import ChatTemplate
from cluster.openai.prompts.model_context import ModelContext, ModelLimits
from cluster.tokenizer import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
EOS_ID, END_ID = 2, 3
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('odd role') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_WORDS = ["the", "he", "stop", "STOP", "solve", "yes", "no", "x", "equals"]


def byte_level_backend() -> Backend:
    """Byte-level BPE with merges for a few words, with and without the space before them."""
    vocab: dict[str, int] = {token: index for index, token in enumerate(SPECIAL)}
    for char in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(char, len(vocab))
    backend = Backend(models.BPE(vocab=vocab, merges=_merges(vocab, "Ġ"), unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return backend


def byte_fallback_backend() -> Backend:
    """Return a backend of Llama's kind.

    It has U+2581 for a space, adds one before the first word, and uses byte tokens for unknown characters.
    """
    vocab: dict[str, int] = {token: index for index, token in enumerate(SPECIAL)}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for char in ["\u2581", *map(chr, range(33, 127)), "é", "ß", "中", "\n"]:
        vocab.setdefault(char, len(vocab))
    merges = _merges(vocab, "\u2581")
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, rstrip=token.startswith("<|"))
            for token in SPECIAL
        ]
    )
    return backend


def byte_level() -> Tokenizer:
    return _tokenizer(byte_level_backend())


def byte_fallback() -> Tokenizer:
    return _tokenizer(byte_fallback_backend())


def model_context(tokenizer: Tokenizer, max_model_len: int = 256) -> ModelContext:
    """Return a model with this tokenizer, and a few more rows than tokens, as real models have."""
    num_tokens = next(token_id for token_id in itertools.count() if not tokenizer.token_string(token_id))
    return ModelContext(
        tokenizer=tokenizer,
        template=ChatTemplate(CHAT_TEMPLATE, tokenizer.special_tokens),
        limits=ModelLimits(
            max_model_len=max_model_len, vocab_size=num_tokens + 8, eos_token_ids=(EOS_ID, END_ID)
        ),
    )


def write_checkpoint_files(directory: Path, backend: Backend) -> None:
    """Write the files of a checkpoint directory that an ingress replica reads."""
    backend.save(str(directory / "tokenizer.json"))
    config = {
        "bos_token": {"content": "<s>", "special": True},
        "eos_token": "</s>",
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"vocab_size": 512, "eos_token_id": EOS_ID}))


def _tokenizer(backend: Backend) -> Tokenizer:
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, CHAT_TEMPLATE)


def _merges(vocab: dict[str, int], space: str) -> list[tuple[str, str]]:
    """Merges that build each word from the left, and the word after a space from both."""
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        for end in range(1, len(word)):
            merge = (word[:end], word[end])
            if merge not in merges:
                merges.append(merge)
                vocab.setdefault("".join(merge), len(vocab))
    for word in _WORDS:
        merges.append((space, word))
        vocab.setdefault(space + word, len(vocab))
    return merges
