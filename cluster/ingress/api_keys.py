"""API keys: which ones there are, and whose one is that a client shows.

    api_keys_file, PHIMOE_API_KEYS      ->  keys of clients
    admin_keys_file, PHIMOE_ADMIN_KEYS  ->  keys of operators, who may do what clients may as well

One entry a line (in the variables also between commas): `name:key` or a bare key; `#` begins a comment. A key is at least 16
characters of those that a bearer token may hold (RFC 6750). Only hashes are kept, and no key is ever part of a message.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

MIN_KEY_CHARS = 16
_LOOK_SECONDS = 1.0
"""Files are looked at when a key is, but not more often than this."""
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

_Signature = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """One key, without the key."""

    name: str
    """For logs; a bare key is called key-N after its line."""
    digest: bytes = field(repr=False)
    """SHA-256 of the key; what tells two keys apart."""
    is_admin: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySource:
    """Where keys of one kind come from."""

    file: Path | None
    variable: str
    """Name of the environment variable, for messages."""
    entries: str
    """Its value."""
    is_admin: bool


class KeyRing:
    """All keys of a service, following the files as they change.

    A file that has become unreadable, empty or wrong leaves the keys as they were, and the log says so; such a file at the
    start is a ValueError.
    """

    def __init__(self, sources: tuple[KeySource, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self._sources, self._clock = sources, clock
        self._signatures = self._look()
        self._keys = _read_all(sources)
        self._looked_at = clock()

    @property
    def has_keys(self) -> bool:
        """Whether any key is configured: then every door that is not public wants one."""
        return bool(self._current())

    @property
    def has_admin_keys(self) -> bool:
        """Whether there are keys of operators."""
        return any(key.is_admin for key in self._current())

    def find(self, shown: str) -> ApiKey | None:
        """The key that a client showed, compared with all of them in a time that says nothing about where they differ."""
        digest, found = hashlib.sha256(shown.encode("utf-8", "surrogateescape")).digest(), None
        for key in self._current():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _current(self) -> tuple[ApiKey, ...]:
        now = self._clock()
        if now - self._looked_at < _LOOK_SECONDS:
            return self._keys
        self._looked_at = now
        signatures = self._look()
        if signatures == self._signatures:
            return self._keys
        self._signatures = signatures
        try:
            self._keys = _read_all(self._sources)
        except ValueError as error:
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("%d API keys are read again", len(self._keys))
        return self._keys

    def _look(self) -> tuple[_Signature | None, ...]:
        return tuple(_signature(source.file) for source in self._sources)


def parse_keys(text: str, origin: str, is_admin: bool) -> Iterator[ApiKey]:
    """The entries of a text. Raises ValueError that names `origin` and the entry's number, never the key."""
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        name, has_name, key = entry.partition(":")
        name, key = (name.strip(), key.strip()) if has_name else (f"key-{number}", entry)
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{origin}: entry {number} has a name that is not 1 to 64 letters, digits, . _ -"
            )
        if len(key) < MIN_KEY_CHARS or not _KEY.fullmatch(key):
            raise ValueError(
                f"{origin}: the key of entry {number} is not at least {MIN_KEY_CHARS} letters, digits, - . _ ~ + / ="
                " (openssl rand -hex 32 makes one)"
            )
        yield ApiKey(name=name, digest=hashlib.sha256(key.encode()).digest(), is_admin=is_admin)


def _read_all(sources: tuple[KeySource, ...]) -> tuple[ApiKey, ...]:
    keys = tuple(key for source in sources for key in _read(source))
    seen: dict[bytes, ApiKey] = {}
    for key in keys:
        other = seen.setdefault(key.digest, key)
        if other is not key:
            raise ValueError(f"API keys {other.name!r} and {key.name!r} are the same key")
    return keys


def _read(source: KeySource) -> Iterator[ApiKey]:
    yield from parse_keys(source.entries.replace(",", "\n"), source.variable, source.is_admin)
    if source.file is None:
        return
    try:
        text = source.file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"cannot read keys from {source.file}: {reason}") from None
    keys = list(parse_keys(text, str(source.file), source.is_admin))
    if not keys:
        raise ValueError(f"{source.file} holds no key; to do without keys, leave the file out of the config")
    yield from keys


def _signature(file: Path | None) -> _Signature | None:
    """Changes with every way of changing a file: written in place, replaced, or behind a link that moved."""
    try:
        status = file.stat() if file is not None else None
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_ino, status.st_size)
