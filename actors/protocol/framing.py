"""Frames between ingress and dense actor: 4 bytes of length, little-endian, then one msgpack message.

A receiver gets one of the types below or a FrameError. A peer cannot make the receiver run code or take more
memory than MAX_FRAME_BYTES for a frame.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TypeAlias

import msgspec

from actors.errors import FrameError
from actors.protocol.messages import Cancel, Hello, StepOutput, Submit, Welcome

Frame: TypeAlias = Hello | Welcome | Submit | Cancel | StepOutput

MAX_FRAME_BYTES = 64 * 1024 * 1024

_LENGTH = struct.Struct("<I")
_DECODER: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def encode_frame(message: Frame) -> bytes:
    """Return the frame of one message."""
    payload = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(payload)) + payload


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """Read the next message.

    Raises FrameError for bytes that are no message, and asyncio.IncompleteReadError when the connection ends.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
    try:
        return _DECODER.decode(await reader.readexactly(length))
    except msgspec.MsgspecError as error:
        raise FrameError(f"not a message of this protocol: {error}") from error
