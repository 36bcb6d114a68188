"""One message of a link: header, routing and rows in one piece of memory that is reused.

Legend: T tokens of the message, H hidden, K experts per token, N results.

    header   8 int64    magic, kind, epoch, sequence, layer, tokens, results, bytes
    routing  ROWS only  expert_ids [T, K] int32, weights [T, K] float32
    payload  starts at a multiple of 64 bytes: rows [T, H], results [N, H] or the text of a failure or refusal

On a CPU the message is one piece of memory and is sent as one. On CUDA the payload is on the device; header
and routing, which the host writes and reads, are on the host, so no sync is needed to know what a message is.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

MAGIC = int.from_bytes(b"phimoe\x00\x01", "little")
"""The first 8 bytes of every message in this version of the format."""
ROWS = 1
RESULTS = 2
FAILURE = 3
NOT_HELD = 4
"""The actor does not hold some experts; the text has their ids. Another actor may hold them."""

HEADER_BYTES = 64
_HEADER = struct.Struct("<8q")
_ALIGNMENT = 64
_MAX_FAILURE_BYTES = 2048


class Header(NamedTuple):
    """The kind, the origin and the size of a message; it comes before routing and payload."""

    magic: int
    kind: int
    epoch: int
    sequence: int
    """The number of a message with rows, counted by the dense actor. Its answer carries the same number."""
    layer: int
    num_tokens: int
    num_results: int
    num_bytes: int
    """The size of the whole message, header included."""


_NO_HEADER = Header(0, 0, 0, 0, 0, 0, 0, 0)


class MessageFormat(NamedTuple):
    """The properties of rows on which both ends of a link agree."""

    hidden_size: int
    num_choices: int
    """K"""
    dtype: torch.dtype
    device: torch.device
    max_rows: int
    """The largest number of tokens in one message."""

    @property
    def row_bytes(self) -> int:
        return self.hidden_size * self.dtype.itemsize

    @property
    def max_payload_bytes(self) -> int:
        """Size of the largest payload: the results [max_rows * K, H] of rows [max_rows, H]."""
        return self.max_rows * self.num_choices * self.row_bytes

    @property
    def max_host_bytes(self) -> int:
        """Size of the largest header with its routing, or with the text of a failure."""
        return max(self.payload_offset(self.max_rows), HEADER_BYTES + _MAX_FAILURE_BYTES)

    @property
    def max_message_bytes(self) -> int:
        return self.max_host_bytes + self.max_payload_bytes

    def payload_offset(self, num_tokens: int) -> int:
        """Byte at which rows start: after the routing of `num_tokens`, aligned."""
        return align(HEADER_BYTES + num_tokens * self.num_choices * 8)


def align(num_bytes: int) -> int:
    """Round a size up to the next place at which rows may start."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class Message:
    """Memory that holds one message at a time. Not thread-safe."""

    def __init__(self, message_format: MessageFormat) -> None:
        self.format = message_format
        self._is_split = message_format.device.type != "cpu"
        host_bytes = message_format.max_host_bytes if self._is_split else message_format.max_message_bytes
        self.host = torch.empty(host_bytes, dtype=torch.uint8)
        """On a CPU the whole message, on CUDA header and routing. Pages never touched cost no memory."""
        self._device_payload = (
            torch.empty(message_format.max_payload_bytes, dtype=torch.uint8, device=message_format.device)
            if self._is_split
            else None
        )
        self._array: npt.NDArray[np.uint8] = self.host.numpy()
        self.host_view = self._array.data
        """The bytes of `host`, writable."""
        self.header = _NO_HEADER
        """The header that was written last, or that `read_header` found."""
        self._row_bytes = message_format.row_bytes
        # Views for one row are kept, since making them would take most of the time of such a message.
        self._one_row_offset = message_format.payload_offset(1)
        self._few_rows = {
            (offset, num_rows): self._make_payload(offset, num_rows)
            for offset, num_rows in {(self._one_row_offset, 1), (HEADER_BYTES, 1), (HEADER_BYTES, 2)}
            if num_rows <= message_format.max_rows * message_format.num_choices
        }
        self._one_row = struct.Struct(f"<8q{message_format.num_choices}i{message_format.num_choices}f")

    @property
    def num_host_bytes(self) -> int:
        """How many bytes of `host` belong to the message."""
        header = self.header
        if not self._is_split or header.kind in (FAILURE, NOT_HELD):
            return header.num_bytes
        return self.format.payload_offset(header.num_tokens) if header.kind == ROWS else HEADER_BYTES

    def read_header(self) -> Header:
        """Read the header from the received bytes, and return it."""
        self.header = Header(*_HEADER.unpack_from(self.host_view))
        return self.header

    def write_rows(
        self,
        header: Header,
        expert_ids: npt.NDArray[np.int64],
        weights: npt.NDArray[np.float32],
    ) -> torch.Tensor:
        """Write header and routing [T, K], and return the view [T, H] into which rows belong.

        Raises ValueError if there are more than max_rows rows.
        """
        if header.num_tokens > self.format.max_rows:
            raise ValueError(
                f"a dispatch of {header.num_tokens} rows to one actor, max_rows is {self.format.max_rows}"
            )
        count = expert_ids.size
        end = HEADER_BYTES + 4 * count
        self._array[HEADER_BYTES:end].view(np.int32)[:] = expert_ids.reshape(-1)
        self._array[end : end + 4 * count].view(np.float32)[:] = weights.reshape(-1)
        offset = self.format.payload_offset(header.num_tokens)
        payload = self._payload(offset, header.num_tokens)
        self._write_header(header, offset + header.num_tokens * self._row_bytes)
        return payload

    def write_row(self, header: Header, expert_ids: Sequence[int], weights: Sequence[float]) -> torch.Tensor:
        """`write_rows` for one token, faster: expert_ids [K], weights [K] -> view [1, H]."""
        offset = self._one_row_offset
        self.header = Header(*header[:-1], offset + self._row_bytes)
        self._one_row.pack_into(self.host_view, 0, *self.header, *expert_ids, *weights)
        return self._few_rows[offset, 1]

    def write_results(self, header: Header, results: torch.Tensor) -> None:
        """Write header and results [N, H]."""
        self._payload(HEADER_BYTES, header.num_results).copy_(results)
        self._write_header(header, HEADER_BYTES + header.num_results * self._row_bytes)

    def write_failure(self, header: Header, reason: str) -> None:
        """Write header and reason; a reason that is too long is cut."""
        text = reason.encode()[:_MAX_FAILURE_BYTES]
        num_bytes = HEADER_BYTES + len(text)
        self._array[HEADER_BYTES:num_bytes] = np.frombuffer(text, dtype=np.uint8)
        self._write_header(header, num_bytes)

    def routing(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The expert_ids [T, K] int64 and weights [T, K] float32 of received rows, on the host."""
        shape = (self.header.num_tokens, self.format.num_choices)
        count = shape[0] * shape[1]
        end = HEADER_BYTES + 4 * count
        expert_ids = self._array[HEADER_BYTES:end].view(np.int32).astype(np.int64).reshape(shape)
        weights = self._array[end : end + 4 * count].view(np.float32).reshape(shape)
        return torch.from_numpy(expert_ids), torch.from_numpy(weights)

    def payload(self) -> torch.Tensor:
        """A view of the rows [T, H] or results [N, H] of this message, on the device."""
        header = self.header
        if header.kind == ROWS:
            return self._payload(self.format.payload_offset(header.num_tokens), header.num_tokens)
        return self._payload(HEADER_BYTES, header.num_results if header.kind == RESULTS else 0)

    def failure(self) -> str:
        """The reason in a received failure."""
        return self._array[HEADER_BYTES : self.header.num_bytes].tobytes().decode(errors="replace")

    def fault(self) -> str | None:
        """What is wrong with the received header, in words that follow "sent"; None if it is valid."""
        header, limits = self.header, self.format
        if header.magic != MAGIC:
            return f"a message that starts with {header.magic:#x}"
        if not 0 <= header.num_tokens <= limits.max_rows:
            return f"a message of {header.num_tokens} rows, at most {limits.max_rows} are allowed"
        if not 0 <= header.num_results <= header.num_tokens * limits.num_choices:
            return f"a message with {header.num_results} results for {header.num_tokens} rows"
        if not self._is_size_right(header):
            return f"a message of kind {header.kind} and {header.num_bytes} bytes"
        return None

    def _is_size_right(self, header: Header) -> bool:
        if header.kind == RESULTS:
            return header.num_bytes == HEADER_BYTES + header.num_results * self._row_bytes
        if header.kind == ROWS:
            offset = self.format.payload_offset(header.num_tokens)
            return header.num_bytes == offset + header.num_tokens * self._row_bytes
        is_text = header.kind in (FAILURE, NOT_HELD)
        return is_text and HEADER_BYTES <= header.num_bytes <= HEADER_BYTES + _MAX_FAILURE_BYTES

    def _payload(self, offset: int, num_rows: int) -> torch.Tensor:
        kept = self._few_rows.get((offset, num_rows))
        return self._make_payload(offset, num_rows) if kept is None else kept

    def _make_payload(self, offset: int, num_rows: int) -> torch.Tensor:
        num_bytes = num_rows * self._row_bytes
        if self._device_payload is None:
            part = self.host[offset : offset + num_bytes]
        else:
            part = self._device_payload[:num_bytes]
        return part.view(self.format.dtype).view(num_rows, self.format.hidden_size)

    def _write_header(self, header: Header, num_bytes: int) -> None:
        self.header = Header(*header[:-1], num_bytes)
        _HEADER.pack_into(self.host_view, 0, *self.header)
