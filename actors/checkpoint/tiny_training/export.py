"""Writes a tiny model as a Hugging Face checkpoint directory; no file in it is ever incomplete."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Tokenizer

from actors.checkpoint.tiny_training.model import TinyPhiMoE
from actors.checkpoint.tiny_training.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, special_ids


def write_checkpoint(directory: Path, model: TinyPhiMoE, tokenizer: Tokenizer) -> None:
    """Write the six files, the weights (in bf16) last; each file is replaced in one step."""
    directory.mkdir(parents=True, exist_ok=True)
    ids = special_ids(tokenizer)
    _replace(directory / "config.json", _json(model.shape.hf_config()))
    _replace(directory / "generation_config.json", _json(_generation_config(ids)))
    _replace(directory / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    _replace(directory / "tokenizer_config.json", _json(_tokenizer_config(ids, model.shape.max_positions)))
    _replace(directory / "special_tokens_map.json", _json(_named_tokens()))
    tensors = {name: t.detach().to(torch.bfloat16).contiguous() for name, t in model.hf_tensors().items()}
    _replace(directory / "model.safetensors", save(tensors, metadata={"format": "pt"}))


def _generation_config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "bos_token_id": ids["<s>"],
        "eos_token_id": [ids["<|end|>"], ids["<|endoftext|>"]],
        "pad_token_id": ids["<|endoftext|>"],
    }


def _tokenizer_config(ids: dict[str, int], max_positions: int) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {str(ids[token]): {"content": token, **flags} for token in SPECIAL_TOKENS},
        **_named_tokens(),
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _named_tokens() -> dict[str, str]:
    return {
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.chmod(0o644)
    os.replace(partial, path)
