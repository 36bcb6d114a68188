"""Writes config and tokenizer files for random weights, which are all that an ingress needs.

Imports no torch.

ids 0-7      <unk> <s> </s> <|endoftext|> <|assistant|> <|end|> <|system|> <|user|>
ids 8-263    the 256 bytes
ids 264-     fillers, so that every id of the vocabulary decodes to some text
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from actors.checkpoint.config import CONFIG_FILE, GENERATION_CONFIG_FILE, ModelConfig
from actors.checkpoint.download import SMALL_FILES, TINY, embedded_directory
from actors.checkpoint.dummy.presets import generation_config, original_dialect, preset_config
from actors.checkpoint.index import INDEX_FILE

SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|assistant|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
)
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def write_small_files(preset: str, out_dir: Path) -> ModelConfig:
    """Write everything but the weights of a preset into an existing directory and return its config.

    For "tiny" the embedded model's files are copied. Raises ValueError for an unknown preset.
    """
    config = preset_config(preset)
    if preset == TINY:
        for name in SMALL_FILES:
            source = embedded_directory() / name
            if name != INDEX_FILE and source.exists():
                shutil.copyfile(source, out_dir / name)
    else:
        write_config_files(config, out_dir)
        write_tokenizer_files(config, out_dir)
    return config


def write_config_files(config: ModelConfig, out_dir: Path) -> None:
    """Write config.json, in the original dialect, and generation_config.json."""
    _write_json(out_dir / CONFIG_FILE, original_dialect(config))
    _write_json(out_dir / GENERATION_CONFIG_FILE, generation_config(config))


def write_tokenizer_files(config: ModelConfig, out_dir: Path) -> None:
    """Write a byte-level tokenizer without merges, and its chat template.

    Raises ValueError for a vocabulary of fewer than 264 tokens.
    """
    if config.vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {config.vocab_size}, expected at least {MIN_VOCAB_SIZE}")
    # The import is here so that cluster code that only needs the names above does not load the library.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"<filler{i}>" for i in range(config.vocab_size - len(pieces))]
    vocab = {piece: id_ for id_, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(out_dir / "tokenizer.json"))
    special = {
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
    }
    _write_json(out_dir / "special_tokens_map.json", special)
    _write_json(
        out_dir / "tokenizer_config.json",
        {
            **special,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": config.max_position_embeddings,
        },
    )


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
