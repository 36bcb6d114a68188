"""How an expert and a dense actor agree on a link: an address record, then the first words on a connection.

    dense actor -> its store       address record: host, port and secret of its listener
    expert actor -> dense actor    the secret of that record, then LinkHello
    dense actor -> expert actor    LinkReply, at the latest when it has heard of the membership itself

A frame is 4 bytes of length, little-endian, and msgpack. A stranger who connects can neither make the dense
actor run code nor make it take much memory.
"""

from __future__ import annotations

import socket
import struct
from typing import TypeVar

import msgspec
from torch._C._distributed_c10d import PrefixStore, Store

from actors.exchange.deadline import Deadline

SECRET_BYTES = 16
MAX_FRAME_BYTES = 4096
_LENGTH = struct.Struct("<I")
_ADDRESS = "address"

NO_LINK = -1

T = TypeVar("T")


class LinkHello(msgspec.Struct, frozen=True, kw_only=True):
    """Who knocks, and what for."""

    expert_index: int
    incarnation: str
    dense_incarnation: str
    """Whom it takes the dense actor for."""
    epoch: int
    """Of the membership that it joins."""
    linked_epoch: int = NO_LINK
    """Epoch of the link that it has to this dense actor already, and believes to be working."""


class LinkReply(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of it."""

    outcome: str
    """"link": this connection is now the link, or a group comes up for it; "keep": go on with the present
    link; "stale": the epoch is not the newest; "refused"."""
    epoch: int
    """The dense actor's newest."""
    reason: str = ""


def is_same(named: str, shown: str) -> bool:
    """Whether a process that shows this incarnation is the one that was named; an empty name means any."""
    return named in ("", shown)


def publish_address_record(store: Store, host: str, port: int, secret: bytes) -> None:
    """Put the address of a dense actor's listener into the actor's store."""
    _address_records(store).set(_ADDRESS, f"{host} {port} {secret.hex()}")


def read_address_record(store: Store) -> tuple[str, int, bytes] | None:
    """Host, port and secret of a dense actor's listener; None before it listens.

    Raises RuntimeError as the store does.
    """
    records = _address_records(store)
    if not records.check([_ADDRESS]):
        return None
    host, port, secret = records.get(_ADDRESS).decode().split()
    return host, int(port), bytes.fromhex(secret)


def _address_records(store: Store) -> PrefixStore:
    return PrefixStore("listener", store)


def send_frame(connection: socket.socket, frame: LinkHello | LinkReply, prefix: bytes = b"") -> None:
    """Raises OSError."""
    payload = msgspec.msgpack.encode(frame)
    connection.sendall(prefix + _LENGTH.pack(len(payload)) + payload)


def read_frame(connection: socket.socket, kind: type[T], deadline: Deadline) -> T:
    """Raises OSError (also TimeoutError at the deadline) and ValueError for what is no such frame."""
    (length,) = _LENGTH.unpack(read_exactly(connection, _LENGTH.size, deadline))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes, at most {MAX_FRAME_BYTES} are allowed")
    try:
        return msgspec.msgpack.decode(read_exactly(connection, length, deadline), type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error


def read_exactly(connection: socket.socket, num_bytes: int, deadline: Deadline) -> bytes:
    """Raises OSError, TimeoutError at the deadline and ConnectionError when the peer leaves before."""
    received = b""
    while len(received) < num_bytes:
        connection.settimeout(max(0.001, deadline.remaining_seconds))
        part = connection.recv(num_bytes - len(received))
        if not part:
            raise ConnectionError("closed by peer")
        received += part
    return received
