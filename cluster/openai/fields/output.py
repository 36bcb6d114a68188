"""The fields that say what an answer contains and how it is streamed."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cluster.kinds.kind import Limit
from cluster.kinds.scalars import Boolean, Integer, Text
from cluster.openai.fields.special import StopStrings

LOGPROBS = Integer(0, Limit("max_logprobs"))


class OutputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer contains."""

    stop: Annotated[
        tuple[str, ...],
        StopStrings(
            Text(
                Limit("max_stop_chars"),
                empty="'' would stop everything; expected strings of at least one character",
            )
        ),
        "Texts that end the output.",
    ] = ()
    include_stop_str_in_output: Annotated[
        bool, Boolean(), "Whether the output contains the stop string or stop token that ended it."
    ] = False
    skip_special_tokens: Annotated[bool, Boolean(), "Leave special tokens out of the text."] = True
    echo: Annotated[
        bool, Boolean(), "Begin with the prompt; for a chat, with the assistant message that is continued."
    ] = False
    logprobs: int | None = None
    """Alternatives per output token: None reports nothing, 0 the token alone. The parser sets this field."""
    prompt_logprobs: Annotated[
        int | None, LOGPROBS, "Report the prompt's tokens with this many alternatives; not with stream."
    ] = None
    return_token_ids: Annotated[bool, Boolean(), "Report the token ids of prompt and output."] = False
    return_tokens_as_token_ids: Annotated[bool, Boolean(), "Name tokens `token_id:N` in logprobs."] = False


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a streamed answer reports usage."""

    include_usage: Annotated[
        bool, Boolean(), "Send one more chunk at the end, with usage and without choices."
    ] = False
    continuous_usage_stats: Annotated[bool, Boolean(), "Report the usage so far in every chunk."] = False
