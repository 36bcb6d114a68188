"""The one place where the operator's environment variables are read.

`cluster.ray_actors.ray_environment` sets the variables that Ray reads.
"""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_HEADER_LIMITS = (10, 16384)
"""Longest time in seconds and largest size in bytes of a header, if the environment does not set them."""


def header_limits() -> tuple[int, int]:
    """PHIMOE_HEADER_TIMEOUT_SECONDS and PHIMOE_MAX_HEADER_BYTES: the limits of an HTTP request's header."""
    seconds, max_bytes = DEFAULT_HEADER_LIMITS
    return (
        int(os.environ.get("PHIMOE_HEADER_TIMEOUT_SECONDS", seconds)),
        int(os.environ.get("PHIMOE_MAX_HEADER_BYTES", max_bytes)),
    )


def api_keys() -> str:
    """PHIMOE_API_KEYS: keys of clients, one a line or separated by commas, each `name:key` or a bare key."""
    return os.environ.get("PHIMOE_API_KEYS", "")


def admin_keys() -> str:
    """PHIMOE_ADMIN_KEYS: keys of operators, in the same form."""
    return os.environ.get("PHIMOE_ADMIN_KEYS", "")


def own_api_key() -> str | None:
    """PHIMOE_API_KEY: the key that commands send to a service."""
    return os.environ.get("PHIMOE_API_KEY") or None


def own_admin_key() -> str | None:
    """PHIMOE_ADMIN_KEY: the key that admin commands send to a service."""
    return os.environ.get("PHIMOE_ADMIN_KEY") or None


def hub_token() -> str | None:
    """HF_TOKEN or HUGGING_FACE_HUB_TOKEN: the token for the model hub; None if neither is set."""
    return os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")


def state_folder() -> Path:
    """The folder where a running `phimoe serve` leaves a file, so that other commands find it."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "phimoe"
