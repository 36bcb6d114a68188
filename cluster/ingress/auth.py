"""Who may call what: one rule for HTTP and gRPC.

    access    keys configured                       no key configured
    PUBLIC    anybody                               anybody
    CLIENT    any key                               anybody
    ADMIN     an admin key                          this host alone, if the service listens on loopback

These are PUBLIC: /health, /version, /openapi.json, gRPC health and gRPC reflection. Reflection tells only
what the .proto files in the repository tell, and Serve answers it without asking this service. The operators'
routes and methods are ADMIN. Everything else is CLIENT, /cluster and /load included: give a monitoring system
a key of its own, not an operator's key.

Without any key, an admin request is also refused in two cases. It has an Origin header: only browsers send
one, and a web page that a user of this host visits must not operate the service. Or it has a header by which
a proxy says that it forwards the request. A request that a proxy forwards without such a header cannot be
told from one of this host itself, so configure an admin key before you put a proxy before the service. If
only clients have keys, every admin request is refused.
"""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.config import environment
from cluster.config.cluster_config import ClusterConfig
from cluster.errors import Forbidden, TooManyRequests, Unauthenticated
from cluster.ingress.api_keys import ApiKey, KeyRing, KeySource

FORWARDED = ("forwarded", "via", "x-forwarded-for")
"""Headers and metadata by which a proxy says that it forwards a request of somebody else."""
_SCHEME = "bearer"
_RETRY_SECONDS = 1


class Access(enum.Enum):
    """Who may call a route or method."""

    PUBLIC = "public"
    CLIENT = "client"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """What is known of the client that makes a call."""

    authorization: tuple[str, ...] = ()
    """Every authorization header or metadata entry."""
    address: str | None = None
    """IP address of the other end of the connection, which may be a proxy; None if unknown."""
    is_from_page: bool = False
    """Whether the request has an Origin header, by which a browser says that a web page makes the request."""
    is_forwarded: bool = False
    """Whether a proxy says that it forwards the request of somebody else."""


class Authenticator:
    """Admits calls, or raises Unauthenticated, Forbidden or TooManyRequests.

    Counts the running calls of each key.
    """

    def __init__(self, keys: KeyRing, *, is_loopback: bool, max_requests_per_key: int) -> None:
        """`is_loopback` says that the service listens on an address that only this host can reach."""
        self._keys, self._is_loopback, self._max_per_key = keys, is_loopback, max_requests_per_key
        self._under_way: Counter[bytes] = Counter()

    @contextlib.contextmanager
    def admitted(self, access: Access, caller: Caller) -> Iterator[None]:
        """Admit one call for the duration of the block. The call counts for its key until the block ends.

        Only calls of clients with a key are counted: operators must be admitted even when a key's limit is
        reached.
        """
        key = self._identify(access, caller)
        if key is None or access is not Access.CLIENT:
            yield
            return
        if self._under_way[key.digest] >= self._max_per_key:
            raise TooManyRequests(
                f"max_requests_per_key: {self._under_way[key.digest]} requests of API key {key.name!r}"
                f" are under way here, the limit is {self._max_per_key}",
                _RETRY_SECONDS,
            )
        self._under_way[key.digest] += 1
        try:
            yield
        finally:
            self._under_way[key.digest] -= 1
            if not self._under_way[key.digest]:
                del self._under_way[key.digest]

    @property
    def has_keys(self) -> bool:
        """Whether every route and method that is not public requires a key."""
        return self._keys.has_keys

    def _identify(self, access: Access, caller: Caller) -> ApiKey | None:
        if access is Access.PUBLIC:
            return None
        if not self._keys.has_keys:
            if access is Access.ADMIN:
                self._check_this_host(caller)
            return None
        key = self._keys.find(_bearer(caller))
        if key is None:
            raise Unauthenticated("the API key is wrong")
        if access is Access.ADMIN and not key.is_admin:
            if not self._keys.has_admin_keys:
                raise Forbidden("this needs an admin key, and none is configured (admin_keys_file)")
            raise Forbidden(f"this needs an admin key; {key.name!r} is a client's")
        return key

    def _check_this_host(self, caller: Caller) -> None:
        if not self._is_loopback:
            raise Forbidden(
                "this needs an admin key, and none is configured (admin_keys_file);"
                " without one it is allowed only where the service listens on 127.0.0.1"
            )
        if caller.address is None or not is_this_host(caller.address):
            raise Forbidden(
                "without an admin key (admin_keys_file) this is allowed only from the service's own host"
            )
        if caller.is_from_page or caller.is_forwarded:
            raise Forbidden(
                "without an admin key (admin_keys_file) this is allowed neither to web pages"
                " nor through proxies"
            )


def make_authenticator(config: ClusterConfig) -> Authenticator:
    """Return the authenticator of one ingress replica. Raises ValueError if a key file cannot be used."""
    return Authenticator(
        read_keys(config),
        is_loopback=is_loopback(config.host),
        max_requests_per_key=config.max_requests_per_key,
    )


def read_keys(config: ClusterConfig) -> KeyRing:
    """Read all keys that the config and the environment name.

    Raises ValueError, which names file and entry.
    """
    files = [None if name is None else Path(name) for name in (config.api_keys_file, config.admin_keys_file)]
    return KeyRing(
        (
            KeySource(
                file=files[0], variable="PHIMOE_API_KEYS", entries=environment.api_keys(), is_admin=False
            ),
            KeySource(
                file=files[1], variable="PHIMOE_ADMIN_KEYS", entries=environment.admin_keys(), is_admin=True
            ),
        )
    )


def is_loopback(host: str) -> bool:
    """Whether a service that listens on `host` can be reached only from its own host."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def is_this_host(address: str) -> bool:
    """Whether an IP address belongs to this host, which is so if a socket can be bound to it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if parsed.is_loopback:
        return True
    if parsed.is_unspecified:
        return False
    with socket.socket(socket.AF_INET6 if parsed.version == 6 else socket.AF_INET) as probe:
        try:
            probe.bind((str(parsed), 0))
        except OSError:
            return False
    return True


def _bearer(caller: Caller) -> str:
    if not caller.authorization:
        raise Unauthenticated("there is no API key; send it as `Authorization: Bearer KEY`")
    scheme, _, key = caller.authorization[0].strip().partition(" ")
    if len(caller.authorization) > 1 or scheme.lower() != _SCHEME or not key.strip():
        raise Unauthenticated("the API key cannot be read; send it once, as `Authorization: Bearer KEY`")
    return key.strip()
