"""API keys: reads the configured keys and finds the one that a client sent.

    api_keys_file, PHIMOE_API_KEYS      ->  keys of clients
    admin_keys_file, PHIMOE_ADMIN_KEYS  ->  keys of operators, who may also do everything that clients may do

A file has one entry per line; a variable may also separate entries by commas. An entry is `name:key` or a
bare key, and `#` begins a comment. A key has at least 16 characters, all of them allowed in a bearer token
(RFC 6750). Only hashes are kept, and no message ever contains a key.
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
_CHECK_SECONDS = 1.0
"""The shortest time between two checks of the files. A check happens only when a key is looked up."""
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

_Signature = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key's name, hash and kind, without the key itself."""

    name: str
    """The key's name in logs. A bare key is named key-N, where N is the number of its line."""
    digest: bytes = field(repr=False)
    """SHA-256 of the key, by which keys are compared."""
    is_admin: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySource:
    """The file and the environment variable that hold the keys of one kind."""

    file: Path | None
    variable: str
    """Name of the environment variable, which messages mention."""
    entries: str
    """Value of the environment variable."""
    is_admin: bool


class KeyRing:
    """All keys of a service. The files are read again when they change.

    If a file has become unreadable, empty or invalid, the keys stay as they were and an error is logged. Such
    a file at the start raises ValueError.
    """

    def __init__(self, sources: tuple[KeySource, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self._sources, self._clock = sources, clock
        self._signatures = self._file_signatures()
        self._keys = _read_all(sources)
        self._checked_at = clock()

    @property
    def has_keys(self) -> bool:
        """Whether any key is configured. If so, every route and method that is not public requires one."""
        return bool(self._current())

    @property
    def has_admin_keys(self) -> bool:
        """Whether there are keys of operators."""
        return any(key.is_admin for key in self._current())

    def find(self, shown: str) -> ApiKey | None:
        """Return the configured key that equals `shown`, or None.

        The hashes of all keys are compared in constant time, so the duration tells nothing about any key.
        """
        digest, found = hashlib.sha256(shown.encode("utf-8", "surrogateescape")).digest(), None
        for key in self._current():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _current(self) -> tuple[ApiKey, ...]:
        now = self._clock()
        if now - self._checked_at < _CHECK_SECONDS:
            return self._keys
        self._checked_at = now
        signatures = self._file_signatures()
        if signatures == self._signatures:
            return self._keys
        self._signatures = signatures
        try:
            self._keys = _read_all(self._sources)
        except ValueError as error:
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("read the changed files again: there are %d API keys", len(self._keys))
        return self._keys

    def _file_signatures(self) -> tuple[_Signature | None, ...]:
        return tuple(_signature(source.file) for source in self._sources)


def parse_keys(text: str, origin: str, is_admin: bool) -> Iterator[ApiKey]:
    """Yield the keys in a text.

    Raises ValueError, which names `origin` and the entry's number, never the key.
    """
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
                f"{origin}: the key of entry {number} is not at least {MIN_KEY_CHARS} letters, digits,"
                " - . _ ~ + / = (openssl rand -hex 32 makes one)"
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
        raise ValueError(f"{source.file} holds no key; to run without keys, leave the file out of the config")
    yield from keys


def _signature(file: Path | None) -> _Signature | None:
    """Return values that differ after any change of a file; None if it cannot be read or there is none.

    They notice a file that is written in place, one that is replaced, and a symbolic link that points
    elsewhere.
    """
    try:
        status = file.stat() if file is not None else None
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_ino, status.st_size)
