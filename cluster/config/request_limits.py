"""The limits on requests that do not depend on the model."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Upper bounds. A request that exceeds one of them gets a 400 that names field, value and bound.

    Most of the bounds are keys of the config, which takes their names and defaults from here.
    """

    max_n: int = 128
    """Choices per prompt."""
    max_prompts: int = 1024
    """Prompts in one completions request."""
    max_choices: int = 2048
    """Choices in one completions request: prompts times n."""
    max_prompt_chars: int = 4_000_000
    """Characters of one text prompt or of one conversation."""
    max_prompt_tokens: int | None = None
    """Tokens of one prompt; with None, only the context limits them."""
    max_messages: int = 4096
    max_logprobs: int = 20
    """Alternatives per token."""
    max_stop_strings: int = 32
    max_stop_chars: int = 1024
    """Characters of one stop string."""
    max_stop_token_ids: int = 256
    max_logit_bias: int = 1024
    """Entries of logit_bias."""
    max_request_id_chars: int = 128
    max_priority: int = 1000
    """The largest absolute value of `priority`."""
    max_timeout_seconds: float = 86_400.0
    completion_max_tokens: int = 16
    """The default of max_tokens in a completions request."""


def limits_of(config: object) -> Limits:
    """Return the limits that a config sets in fields of the same names."""
    names = [item.name for item in fields(Limits) if hasattr(config, item.name)]
    return Limits(**{name: getattr(config, name) for name in names})
