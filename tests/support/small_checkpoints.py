"""Random PhiMoE checkpoints of a few hundred kilobytes, with the file names and tensor names of the real one.

`CATALOGUE` covers what a checkpoint may contain: biases, kv groups, windows, config dialects, rope types,
jitter, stored dtypes, file layouts, and shapes with and without support of the CPU kernels. All of them cross
from the short to the long rope list after 48 tokens. Weights come from integers of a seeded generator, so
that they have the same bits on every machine.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

NUM_EXPERTS = 16
ORIGINAL_MAX = 48
"""Number of tokens up to which a sequence uses the short rope list."""
MAX_POSITIONS = 512
BOS_ID, EOS_ID, END_ID = 1, 3, 5
SPECIAL_TOKENS = (
    "<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|system|>", "<|user|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """One small checkpoint. Its hidden size is num_heads * head_dim."""

    name: str
    seed: int
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 8
    expert_width: int = 24
    vocab_size: int = 300
    attention_bias: bool = False
    lm_head_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    jitter: float = 0.01
    """`router_jitter_noise`: half the relative width of the router's window."""
    layer_norm_eps: float = 1e-5
    has_negative_scores: bool = False
    """Whether many tokens have a negative best gate score."""
    dialect: Literal["original", "newer"] = "original"
    """The config's dialect: the original has `rope_scaling`, the newer has `rope_parameters`."""
    rope_type: Literal["longrope", "default"] = "longrope"
    rope_theta: float = 10000.0
    short_mscale: float = 1.1
    long_mscale: float = 1.3
    original_max_at: Literal["both", "top", "rope"] = "both"
    """Where `original_max_position_embeddings` stands: top level of the config, rope dictionary, or both."""
    stored_dtype: torch.dtype = torch.float32
    num_shards: int = 1
    """Number of files; 1 is `model.safetensors` without an index."""
    architecture: str = "PhiMoEForCausalLM"

    @property
    def hidden_size(self) -> int:
        return self.num_heads * self.head_dim


CATALOGUE: tuple[Spec, ...] = (
    Spec(name="plain", seed=1, num_kv_heads=4),
    Spec(
        name="like-the-real-one", seed=2, num_heads=8, num_kv_heads=2, attention_bias=True, lm_head_bias=True,
        sliding_window=131072, short_mscale=1.243163121016122, long_mscale=1.243163121016122,
        stored_dtype=torch.bfloat16, num_shards=3,
    ),
    Spec(
        name="window-16", seed=3, num_kv_heads=2, head_dim=16, expert_width=16, attention_bias=True,
        sliding_window=16,
    ),
    Spec(
        name="window-24-newer", seed=4, num_heads=8, num_kv_heads=8, dialect="newer", sliding_window=24,
        stored_dtype=torch.float16, num_shards=4, architecture="PhimoeForCausalLM",
    ),
    Spec(
        name="default-rope-newer", seed=5, num_kv_heads=1, dialect="newer", rope_type="default", jitter=0.05,
        lm_head_bias=True, architecture="PhimoeForCausalLM",
    ),
    Spec(
        name="default-rope-window", seed=6, num_heads=2, num_kv_heads=2, head_dim=16, rope_type="default",
        rope_theta=1000.0, sliding_window=16, attention_bias=True, lm_head_bias=True, num_shards=2,
    ),
    Spec(name="jitter-zero", seed=7, jitter=0.0, attention_bias=True, vocab_size=311, layer_norm_eps=1e-3),
    Spec(
        name="jitter-wide-kv-1", seed=8, num_heads=8, num_kv_heads=1, expert_width=32, jitter=0.2,
        short_mscale=0.9, long_mscale=1.4, stored_dtype=torch.bfloat16,
    ),
    Spec(
        name="kv-4-of-8-newer", seed=9, num_heads=8, num_kv_heads=4, dialect="newer", attention_bias=True,
        stored_dtype=torch.bfloat16, architecture="PhimoeForCausalLM",
    ),
    Spec(
        name="negative-scores", seed=10, has_negative_scores=True, jitter=0.05, head_dim=16, expert_width=16,
        lm_head_bias=True, num_shards=2,
    ),
    Spec(name="tied-embeddings", seed=11, tie_word_embeddings=True, lm_head_bias=True, jitter=0.05),
    Spec(
        name="three-layers", seed=12, num_layers=3, num_heads=6, num_kv_heads=3, expert_width=20,
        vocab_size=293, dialect="newer", short_mscale=1.0, long_mscale=1.19, attention_bias=True,
        lm_head_bias=True, stored_dtype=torch.bfloat16, num_shards=5, architecture="PhimoeForCausalLM",
    ),
    Spec(
        name="half-precision-window", seed=13, num_kv_heads=1, sliding_window=24, jitter=0.2,
        attention_bias=True, layer_norm_eps=1e-6, stored_dtype=torch.float16,
    ),
    Spec(
        name="limit-in-rope-only", seed=14, num_heads=2, num_kv_heads=1, head_dim=16, original_max_at="rope",
        rope_theta=500.0, lm_head_bias=True, stored_dtype=torch.float16,
    ),
    Spec(
        name="limit-at-top-only", seed=15, num_layers=3, num_kv_heads=2, expert_width=12, dialect="newer",
        original_max_at="top", attention_bias=True, jitter=0.05, num_shards=2,
    ),
    Spec(
        name="wide-heads", seed=21, head_dim=32, expert_width=48, attention_bias=True, lm_head_bias=True,
        vocab_size=330,
    ),
    Spec(
        name="wide-heads-window-newer", seed=22, num_heads=6, num_kv_heads=2, head_dim=32, expert_width=32,
        sliding_window=40, dialect="newer", stored_dtype=torch.bfloat16, num_shards=2, jitter=0.05,
    ),
)  # fmt: skip


def write(spec: Spec, directory: Path) -> Path:
    """Write the checkpoint's files into `directory`, which is created if it is missing, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", config(spec))
    _write_json(
        directory / "generation_config.json",
        {
            "bos_token_id": BOS_ID,
            "eos_token_id": [EOS_ID, END_ID],
            "pad_token_id": EOS_ID,
            "do_sample": False,
        },
    )
    _write_tokenizer(directory, spec.vocab_size)
    _write_weights(directory, weights(spec), spec.num_shards)
    return directory


def checksum(spec: Spec) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights(spec).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def config(spec: Spec) -> dict[str, Any]:
    """Return the content of config.json."""
    newer = spec.dialect == "newer"
    values: dict[str, Any] = {
        "architectures": [spec.architecture],
        "model_type": "phimoe",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.expert_width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": spec.layer_norm_eps,
        "sliding_window": spec.sliding_window,
        "attention_bias": spec.attention_bias,
        "lm_head_bias": spec.lm_head_bias,
        "attention_dropout": 0.0,
        "num_experts_per_tok": 2,
        "num_local_experts": NUM_EXPERTS,
        "router_jitter_noise": spec.jitter,
        "input_jitter_noise": spec.jitter,
        "router_aux_loss_coef": 0.0,
        "output_router_logits": False,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "dtype" if newer else "torch_dtype": str(spec.stored_dtype).removeprefix("torch."),
    }
    if spec.rope_type == "longrope" and spec.original_max_at != "rope":
        values["original_max_position_embeddings"] = ORIGINAL_MAX
    if newer:
        return values | {
            "rope_parameters": {"rope_type": spec.rope_type, "rope_theta": spec.rope_theta} | _scaling(spec)
        }
    scaling = {"type": spec.rope_type} | _scaling(spec) if spec.rope_type == "longrope" else None
    return values | {"rope_theta": spec.rope_theta, "rope_scaling": scaling}


def weights(spec: Spec) -> dict[str, Tensor]:
    """Return all tensors by name, in the stored dtype and in the order of the model.

    The scales spread logits over several units and make attention peaked enough that positions matter. A part
    of the tokens fall into the router's window.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    hidden = spec.hidden_size

    def rand(*shape: int, std: float) -> Tensor:
        steps = torch.randint(-(2**15), 2**15 + 1, shape, generator=generator)
        return steps.float() * (math.sqrt(3) * std / 2**15)

    def linear(rows: int, columns: int, gain: float) -> Tensor:
        return rand(rows, columns, std=gain / math.sqrt(columns))

    def norm(at: str) -> dict[str, Tensor]:
        return {f"{at}.weight": 1 + rand(hidden, std=0.15), f"{at}.bias": rand(hidden, std=0.15)}

    tensors = {"model.embed_tokens.weight": rand(spec.vocab_size, hidden, std=3 / math.sqrt(hidden))}
    kv_rows = spec.num_kv_heads * spec.head_dim
    for layer in range(spec.num_layers):
        at = f"model.layers.{layer}"
        tensors |= norm(f"{at}.input_layernorm")
        for name, rows, gain in (
            ("q", hidden, 1.3),
            ("k", kv_rows, 1.3),
            ("v", kv_rows, 1.0),
            ("o", hidden, 1.0),
        ):
            tensors[f"{at}.self_attn.{name}_proj.weight"] = linear(rows, hidden, gain)
            if spec.attention_bias:
                tensors[f"{at}.self_attn.{name}_proj.bias"] = rand(rows, std=0.3)
        tensors |= norm(f"{at}.post_attention_layernorm")
        gate = linear(NUM_EXPERTS, hidden, 1.0)
        if spec.has_negative_scores:
            # All gate rows share a direction, and the norm's bias points against it.
            shared = torch.ones(hidden) / math.sqrt(hidden)
            gate += shared
            tensors[f"{at}.post_attention_layernorm.bias"] -= 2 * shared
        tensors[f"{at}.block_sparse_moe.gate.weight"] = gate
        for expert in range(NUM_EXPERTS):
            expert_at = f"{at}.block_sparse_moe.experts.{expert}"
            tensors[f"{expert_at}.w1.weight"] = linear(spec.expert_width, hidden, 1.5)
            tensors[f"{expert_at}.w2.weight"] = linear(hidden, spec.expert_width, 1.0)
            tensors[f"{expert_at}.w3.weight"] = linear(spec.expert_width, hidden, 1.5)
    tensors |= norm("model.norm")
    if not spec.tie_word_embeddings:
        tensors["lm_head.weight"] = linear(spec.vocab_size, hidden, 3.0)
    if spec.lm_head_bias:
        tensors["lm_head.bias"] = rand(spec.vocab_size, std=0.5)
    return {name: tensor.to(spec.stored_dtype) for name, tensor in tensors.items()}


def _scaling(spec: Spec) -> dict[str, Any]:
    if spec.rope_type == "default":
        return {}
    half = spec.head_dim // 2
    scaling: dict[str, Any] = {
        "short_factor": [1.0 + 0.07 * i for i in range(half)],
        "long_factor": [1.5 + 0.9 * i for i in range(half)],
        "short_mscale": spec.short_mscale,
        "long_mscale": spec.long_mscale,
    }
    if spec.original_max_at != "top":
        scaling["original_max_position_embeddings"] = ORIGINAL_MAX
    return scaling


def _write_tokenizer(directory: Path, vocab_size: int) -> None:
    """Write a tokenizer with one token per byte.

    Special tokens come first, then the 256 bytes, then fillers, so that every id decodes.
    """
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"<filler{i}>" for i in range(vocab_size - len(tokens))]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
    }
    _write_json(directory / "special_tokens_map.json", named)
    _write_json(
        directory / "tokenizer_config.json",
        named
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": MAX_POSITIONS,
        },
    )


def _write_weights(directory: Path, tensors: dict[str, Tensor], num_shards: int) -> None:
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    per_shard = math.ceil(len(names) / num_shards)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[shard * per_shard : (shard + 1) * per_shard]
        save_file({n: tensors[n] for n in part}, directory / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    total_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
