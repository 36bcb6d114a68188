"""What a request may ask for, whatever the model."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Upper bounds; a request beyond one is answered with a 400 that names field, value and bound.

    Most are keys of the config, with the same names and defaults.
    """

    max_n: int = 128
    """Choices per prompt."""
    max_prompts: int = 1024
    """Prompts in one completions request."""
    max_choices: int = 2048
    """Prompts times n."""
    max_prompt_chars: int = 4_000_000
    """Characters of one text prompt or of one conversation."""
    max_prompt_tokens: int | None = None
    """Tokens of one prompt; None is what the context holds."""
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
    """Of `priority`, in both directions."""
    max_timeout_seconds: float = 86_400.0
    completion_max_tokens: int = 16
    """max_tokens of a completions request that names none."""


def limits_of(config: object) -> Limits:
    """The limits that a config sets, by the names of its fields."""
    names = [item.name for item in fields(Limits) if hasattr(config, item.name)]
    return Limits(**{name: getattr(config, name) for name in names})
