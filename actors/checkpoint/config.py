"""The model's shape and constants, read from config.json and generation_config.json and checked once.

Two dialects of config.json exist:

    original   rope_theta, original_max_position_embeddings,
               rope_scaling {type | rope_type, short_factor, ...}
    newer      rope_parameters {rope_type, rope_theta, short_factor, ...}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actors.checkpoint.fields import Fields, JsonObject, read_json_object
from actors.checkpoint.quantization import StoredQuantization, read_quantization

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"

NUM_EXPERTS = 16
"""Placement, wire format and kernels are built for PhiMoE's 16 experts. More actors would have no work."""
NUM_EXPERTS_PER_TOKEN = 2
"""The router (sparse mixer) picks the best expert and then the second; for more it is not defined."""

DTYPES = ("bfloat16", "float16", "float32")
"""Names of the dtypes in which weights may be stored and served."""

_ARCHITECTURES = ("PhiMoEForCausalLM", "PhimoeForCausalLM")
_DEFAULT_JITTER = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary embedding: inv_freq_i = 1 / (factor_i * theta ** (2 i / head_dim)).

    cos and sin are multiplied by mscale.
    """

    theta: float
    is_longrope: bool
    short_factor: tuple[float, ...]
    """head_dim / 2 divisors for sequences of at most `original_max_position_embeddings` tokens. Without
    LongRoPE all of them are 1."""
    long_factor: tuple[float, ...]
    """The same for longer sequences."""
    short_mscale: float
    long_mscale: float
    original_max_position_embeddings: int | None
    """Longest sequence, in tokens, that uses the short factors; None without LongRoPE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A PhiMoE model. `hidden_size == num_heads * head_dim`; `num_heads` is a multiple of `num_kv_heads`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    """Width of one expert's inner layer."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_token: int
    max_position_embeddings: int
    """Longest sequence in tokens, prompt plus output."""
    rope: RopeConfig
    sliding_window: int | None
    """Position i sees j with i - sliding_window < j <= i; None sees all j <= i."""
    layer_norm_eps: float
    router_jitter: float
    """`router_jitter_noise`: half the relative distance within which experts share a routing weight."""
    attention_bias: bool
    lm_head_bias: bool
    tie_word_embeddings: bool
    stored_dtype: str | None
    """The dtype that the config names, one of DTYPES; a tensor may be stored in another one."""
    stored_quantization: StoredQuantization | None = None
    """How the experts' matrices are quantized; None if they are stored like all other tensors."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Tokens that end a sequence, from generation_config.json if it names any, else from config.json."""

    @property
    def kv_size(self) -> int:
        """Number of features of the keys of one token in one layer; the values have as many."""
        return self.num_kv_heads * self.head_dim

    @staticmethod
    def from_directory(path: str | Path) -> ModelConfig:
        """Read config.json and, if it exists, generation_config.json.

        Raises UnreadableFileError for a missing or broken file and ConfigError for an illegal value.
        """
        directory = Path(path)
        generation_path = directory / GENERATION_CONFIG_FILE
        generation_config = read_json_object(generation_path) if generation_path.exists() else None
        config = read_json_object(directory / CONFIG_FILE)
        return ModelConfig.from_dict(config, generation_config, directory=directory)

    @staticmethod
    def from_dict(
        config: JsonObject, generation_config: JsonObject | None = None, directory: str | Path = ""
    ) -> ModelConfig:
        """Build the config from the parsed files. `directory` only names the files in a ConfigError."""
        fields = Fields(config, str(Path(directory) / CONFIG_FILE))
        generation = Fields(generation_config or {}, str(Path(directory) / GENERATION_CONFIG_FILE))
        _check_kind(fields)
        vocab_size = fields.positive_int("vocab_size")
        hidden_size = fields.positive_int("hidden_size")
        intermediate_size = fields.positive_int("intermediate_size")
        num_heads, num_kv_heads, head_dim = _read_heads(fields, hidden_size)
        bos_token_id, eos_token_ids = _read_special_ids(fields, generation, vocab_size)
        return ModelConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=fields.positive_int("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            num_experts=_read_exactly(fields, "num_local_experts", NUM_EXPERTS),
            num_experts_per_token=_read_exactly(fields, "num_experts_per_tok", NUM_EXPERTS_PER_TOKEN),
            max_position_embeddings=fields.positive_int("max_position_embeddings"),
            rope=_read_rope(fields, head_dim),
            sliding_window=fields.positive_int("sliding_window") if fields.has("sliding_window") else None,
            layer_norm_eps=fields.number("rms_norm_eps"),
            router_jitter=_read_jitter(fields),
            attention_bias=fields.flag("attention_bias", False),
            lm_head_bias=fields.flag("lm_head_bias", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            stored_dtype=_read_dtype(fields),
            stored_quantization=read_quantization(fields, (hidden_size, intermediate_size)),
            bos_token_id=bos_token_id,
            eos_token_ids=eos_token_ids,
        )


def _check_kind(fields: Fields) -> None:
    if fields.text("model_type") != "phimoe":
        raise fields.error("model_type", '"phimoe"')
    if fields.has("architectures"):
        names = fields.texts("architectures")
        if len(names) != 1 or names[0] not in _ARCHITECTURES:
            raise fields.error("architectures", " or ".join(f'["{name}"]' for name in _ARCHITECTURES))
    if fields.has("hidden_act") and fields.text("hidden_act") != "silu":
        raise fields.error("hidden_act", '"silu"')


def _read_heads(fields: Fields, hidden_size: int) -> tuple[int, int, int]:
    num_heads = fields.positive_int("num_attention_heads")
    num_kv_heads = fields.positive_int("num_key_value_heads")
    if hidden_size % num_heads:
        raise fields.error("num_attention_heads", f"a divisor of hidden_size {hidden_size}")
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads {num_heads}")
    head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise fields.error(
            "num_attention_heads",
            f"hidden_size {hidden_size} / num_attention_heads to be even, for rotary halves",
        )
    if fields.has("head_dim") and fields.positive_int("head_dim") != head_dim:
        raise fields.error("head_dim", f"hidden_size / num_attention_heads = {head_dim}")
    return num_heads, num_kv_heads, head_dim


def _read_exactly(fields: Fields, key: str, supported: int) -> int:
    if fields.positive_int(key) != supported:
        raise fields.error(key, str(supported))
    return supported


def _read_rope(fields: Fields, head_dim: int) -> RopeConfig:
    """Read either dialect, or both if they agree."""
    found = [
        _read_rope_section(fields, fields.section(key), head_dim)
        for key in ("rope_parameters", "rope_scaling")
        if fields.has(key)
    ]
    if not found:
        return _plain_rope(fields.number("rope_theta"), head_dim)
    if found[0] != found[-1]:
        raise fields.error("rope_scaling", "the same rotary embedding as in rope_parameters")
    return found[0]


def _read_rope_section(fields: Fields, section: Fields, head_dim: int) -> RopeConfig:
    theta = (section if section.has("rope_theta") else fields).number("rope_theta")
    if section.has("partial_rotary_factor") and section.number("partial_rotary_factor") != 1:
        raise section.error("partial_rotary_factor", "1 (all of a head is rotated)")
    type_key = "rope_type" if section.has("rope_type") else "type"
    rope_type = section.text(type_key) if section.has(type_key) else None
    if rope_type == "default":
        return _plain_rope(theta, head_dim)
    if rope_type != "longrope":
        raise section.error("rope_type" if rope_type is None else type_key, '"longrope" or "default"')
    return RopeConfig(
        theta=theta,
        is_longrope=True,
        short_factor=section.positive_numbers("short_factor", head_dim // 2, "head_dim / 2"),
        long_factor=section.positive_numbers("long_factor", head_dim // 2, "head_dim / 2"),
        short_mscale=section.number("short_mscale"),
        long_mscale=section.number("long_mscale"),
        original_max_position_embeddings=_read_original_max(fields, section),
    )


def _read_original_max(fields: Fields, section: Fields) -> int:
    key = "original_max_position_embeddings"
    inner = section.positive_int(key) if section.has(key) or not fields.has(key) else None
    outer = fields.positive_int(key) if fields.has(key) else None
    if inner is not None and outer is not None and inner != outer:
        raise section.error(key, f"{outer}, as {key} says at the top level")
    original_max = inner if inner is not None else outer
    assert original_max is not None
    return original_max


def _plain_rope(theta: float, head_dim: int) -> RopeConfig:
    ones = (1.0,) * (head_dim // 2)
    return RopeConfig(
        theta=theta,
        is_longrope=False,
        short_factor=ones,
        long_factor=ones,
        short_mscale=1.0,
        long_mscale=1.0,
        original_max_position_embeddings=None,
    )


def _read_jitter(fields: Fields) -> float:
    if not fields.has("router_jitter_noise"):
        return _DEFAULT_JITTER
    return fields.number("router_jitter_noise", positive=False)


def _read_dtype(fields: Fields) -> str | None:
    key = "torch_dtype" if fields.has("torch_dtype") else "dtype"
    if not fields.has(key):
        return None
    name = fields.text(key).removeprefix("torch.")
    if name not in DTYPES:
        raise fields.error(key, " or ".join(f'"{dtype}"' for dtype in DTYPES))
    return name


def _read_special_ids(
    fields: Fields, generation: Fields, vocab_size: int
) -> tuple[int | None, tuple[int, ...]]:
    """Return (bos, eos). Both may be absent: without them a sequence ends only at its maximum length."""

    def source(key: str) -> Fields:
        return generation if generation.has(key) else fields

    bos, eos = source("bos_token_id"), source("eos_token_id")
    bos_id = bos.int_between("bos_token_id", 0, vocab_size - 1) if bos.has("bos_token_id") else None
    eos_ids = eos.ids("eos_token_id", vocab_size) if eos.has("eos_token_id") else ()
    return bos_id, tuple(dict.fromkeys(eos_ids))
