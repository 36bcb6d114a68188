"""Parses server-sent events piece by piece, as far as token streams use the format. Pure."""

from __future__ import annotations


class EventReader:
    """Extracts the data of events from the chunks of a response body.

    Chunks may end anywhere, also inside a line or a UTF-8 character. Lines end with LF or CRLF. Comments and
    the fields `event`, `id` and `retry` are skipped; several data lines of one event are joined by a newline.
    """

    __slots__ = ("_data", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that this chunk completes."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        events: list[bytes] = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data.clear()
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        return events
