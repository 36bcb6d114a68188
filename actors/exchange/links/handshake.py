"""How an expert and a dense actor agree on a link: an address record, then the first frames on a connection.

    dense actor -> its store       address record: host, port and secret of its listener
    expert actor -> dense actor    the secret of that record, then LinkHello
    dense actor -> expert actor    LinkReply, once the dense actor was told of the membership itself

A frame is 4 bytes of length, little-endian, and msgpack. A stranger who connects can neither make the dense
actor run code nor make it use much memory.
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
"""`LinkHello.linked_epoch` of an expert actor that has no link."""

T = TypeVar("T")


class LinkHello(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame on a connection: which expert actor asks for a link, and in which membership."""

    expert_index: int
    incarnation: str
    """The expert actor's."""
    dense_incarnation: str
    """The incarnation of the dense actor that the expert actor wants to reach; empty if any will do."""
    epoch: int
    """The epoch of the membership that the expert actor joins."""
    linked_epoch: int = NO_LINK
    """The epoch of a link to this dense actor that the expert actor has and believes to be working."""


class LinkReply(msgspec.Struct, frozen=True, kw_only=True):
    """The dense actor's answer to a LinkHello."""

    outcome: str
    """"link": this connection becomes the link, or a group comes up for it; "keep": the present link stays;
    "stale": the epoch is not the newest; "refused": there is no link, for `reason`."""
    epoch: int
    """The newest epoch of the dense actor, -1 before the first."""
    reason: str = ""
    """Why the dense actor refuses."""


def is_same(named: str, shown: str) -> bool:
    """Whether a process of incarnation `shown` is the process that was named; an empty name means any."""
    return named in ("", shown)


def publish_address_record(store: Store, host: str, port: int, secret: bytes) -> None:
    """Put the address of a dense actor's listener into the actor's store."""
    _address_records(store).set(_ADDRESS, f"{host} {port} {secret.hex()}")


def read_address_record(store: Store) -> tuple[str, int, bytes] | None:
    """Host, port and secret of a dense actor's listener; None before it listens.

    Raises RuntimeError if the store is unreachable.
    """
    records = _address_records(store)
    if not records.check([_ADDRESS]):
        return None
    host, port, secret = records.get(_ADDRESS).decode().split()
    return host, int(port), bytes.fromhex(secret)


def _address_records(store: Store) -> PrefixStore:
    return PrefixStore("listener", store)


def send_frame(connection: socket.socket, frame: LinkHello | LinkReply, prefix: bytes = b"") -> None:
    """Send the bytes of `prefix`, then a frame. Raises OSError."""
    payload = msgspec.msgpack.encode(frame)
    connection.sendall(prefix + _LENGTH.pack(len(payload)) + payload)


def read_frame(connection: socket.socket, kind: type[T], deadline: Deadline) -> T:
    """Read one frame. Raises OSError, TimeoutError at the deadline, and ValueError for any other bytes."""
    (length,) = _LENGTH.unpack(read_exactly(connection, _LENGTH.size, deadline))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes, at most {MAX_FRAME_BYTES} are allowed")
    try:
        return msgspec.msgpack.decode(read_exactly(connection, length, deadline), type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error


def read_exactly(connection: socket.socket, num_bytes: int, deadline: Deadline) -> bytes:
    """Read `num_bytes`. Raises OSError, TimeoutError at the deadline, ConnectionError if the peer closes."""
    received = b""
    while len(received) < num_bytes:
        connection.settimeout(max(0.001, deadline.remaining_seconds))
        part = connection.recv(num_bytes - len(received))
        if not part:
            raise ConnectionError("closed by peer")
        received += part
    return received
