"""The one place where the operator's environment variables are read.

`cluster.ray_actors.ray_environment` sets the variables that Ray reads.
"""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_HEADER_LIMITS = (10, 16384)
"""Seconds and bytes of an HTTP header, where the environment says nothing else."""


def header_limits() -> tuple[int, int]:
    """PHIMOE_HEADER_TIMEOUT_SECONDS and PHIMOE_MAX_HEADER_BYTES: how long and how large an HTTP header may be."""
    seconds, max_bytes = DEFAULT_HEADER_LIMITS
    return (
        int(os.environ.get("PHIMOE_HEADER_TIMEOUT_SECONDS", seconds)),
        int(os.environ.get("PHIMOE_MAX_HEADER_BYTES", max_bytes)),
    )


def api_keys() -> str:
    """PHIMOE_API_KEYS: keys of clients, one a line or separated by commas, each `name:key` or a bare key."""
    return os.environ.get("PHIMOE_API_KEYS", "")


def admin_keys() -> str:
    """PHIMOE_ADMIN_KEYS: the same for operators."""
    return os.environ.get("PHIMOE_ADMIN_KEYS", "")


def own_api_key() -> str | None:
    """PHIMOE_API_KEY: what the commands that talk to a service show it."""
    return os.environ.get("PHIMOE_API_KEY") or None


def own_admin_key() -> str | None:
    """PHIMOE_ADMIN_KEY: what admin commands show a service."""
    return os.environ.get("PHIMOE_ADMIN_KEY") or None


def hub_token() -> str | None:
    """Token for the model hub, where the operator gave one."""
    return os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")


def state_folder() -> Path:
    """Where a running `phimoe serve` notes itself, so that `phimoe stop` in another shell finds it."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "phimoe"
