"""Reads the operator's environment variables. No other module reads them.

`cluster.ray_actors.ray_environment` sets the variables that Ray reads.
"""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_HEADER_LIMITS = (10, 16384)
"""Longest time in seconds and largest size in bytes of a header, if the environment does not set them."""


def header_limits() -> tuple[int, int]:
    """Return the limits of an HTTP header: PHIMOE_HEADER_TIMEOUT_SECONDS and PHIMOE_MAX_HEADER_BYTES."""
    seconds, max_bytes = DEFAULT_HEADER_LIMITS
    return (
        int(os.environ.get("PHIMOE_HEADER_TIMEOUT_SECONDS", seconds)),
        int(os.environ.get("PHIMOE_MAX_HEADER_BYTES", max_bytes)),
    )


def api_keys() -> str:
    """Return PHIMOE_API_KEYS, the keys of clients, each `name:key` or `key`, split by lines or commas."""
    return os.environ.get("PHIMOE_API_KEYS", "")


def admin_keys() -> str:
    """Return PHIMOE_ADMIN_KEYS, the keys of operators in the same form."""
    return os.environ.get("PHIMOE_ADMIN_KEYS", "")


def own_api_key() -> str | None:
    """Return PHIMOE_API_KEY, the key that commands send to a service."""
    return os.environ.get("PHIMOE_API_KEY") or None


def own_admin_key() -> str | None:
    """Return PHIMOE_ADMIN_KEY, the key that admin commands send to a service."""
    return os.environ.get("PHIMOE_ADMIN_KEY") or None


def hub_token() -> str | None:
    """Return HF_TOKEN or HUGGING_FACE_HUB_TOKEN, the token for the model hub; None if neither is set."""
    return os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")


def state_folder() -> Path:
    """Return the folder where a running `phimoe serve` leaves a file, so that other commands find it."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "phimoe"
