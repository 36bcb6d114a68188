"""The sampling parameters."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec.structs import force_setattr

from cluster.kinds.containers import TokenIds
from cluster.kinds.kind import Limit
from cluster.kinds.scalars import MAX_COUNT, Boolean, Integer, Number
from cluster.openai.fields.special import LogitBias


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """How each sequence is continued.

    `actors.protocol.messages.SamplingParams` carries each field, under the same name, to the dense actor.
    None stands for the value in the checkpoint's generation_config.json or, if it has none, for the default
    of SamplingParams.
    """

    max_tokens: int | None = None
    """The longest output in tokens. The parser takes it from `max_tokens` or `max_completion_tokens`."""
    min_tokens: Annotated[
        int, Integer(0, MAX_COUNT), "The output does not end before it has this many tokens."
    ] = 0
    temperature: Annotated[
        float | None, Number(0, 2), "Divides the logits; 0 always takes the most likely token."
    ] = None
    top_p: Annotated[
        float | None,
        Number(0, 1, is_low_open=True),
        "Sample from the most likely tokens that together reach this probability.",
    ] = None
    top_k: Annotated[
        int | None,
        Integer(-1, MAX_COUNT),
        "Sample from this many of the most likely tokens; 0 and -1 are off.",
    ] = None
    min_p: Annotated[
        float | None,
        Number(0, 1),
        "Sample from tokens with at least this part of the most likely token's probability.",
    ] = None
    frequency_penalty: Annotated[
        float,
        Number(-2, 2),
        "Subtracted from a token's logit once for each occurrence of the token in the output.",
    ] = 0.0
    presence_penalty: Annotated[
        float, Number(-2, 2), "Subtracted once from the logit of each token that the output has."
    ] = 0.0
    repetition_penalty: Annotated[
        float | None,
        Number(0, 10, is_low_open=True),
        "Divides the positive logits of tokens in prompt and output, and multiplies the negative ones.",
    ] = None
    seed: Annotated[
        int | None,
        Integer(-(2**63), 2**64 - 1),
        "The same seed and request give the same tokens; drawn at random if absent.",
    ] = None
    stop_token_ids: Annotated[
        tuple[int, ...], TokenIds(Limit("max_stop_token_ids")), "Tokens that end the output."
    ] = ()
    ignore_eos: Annotated[bool, Boolean(), "Continue after the model's own end-of-sequence tokens."] = False
    logit_bias: Annotated[
        dict[int, float],
        LogitBias(Number(-100, 100)),
        "Token ids, each with a number that is added to its logit.",
    ] = {}

    def __post_init__(self) -> None:
        """Bring values that can be written in several ways into the form that the sampler expects."""
        if self.top_k == -1:
            force_setattr(self, "top_k", 0)
        if self.seed is not None and self.seed < 0:
            force_setattr(self, "seed", self.seed % 2**64)
        if self.stop_token_ids:
            force_setattr(self, "stop_token_ids", tuple(dict.fromkeys(self.stop_token_ids)))


UNSUPPORTED_SAMPLING: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": (),
    "bad_words": ([],),
    "early_stopping": (False,),
    "length_penalty": (1, 1.0),
    "logits_processors": (),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1, 1.0),
    "use_beam_search": (False,),
}
"""Fields that are known but not supported, each with the values, beside null, that ask for nothing."""
