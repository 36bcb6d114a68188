"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Iterable


class StopScanner:
    """Finds stop strings in text that comes in pieces, and holds back whatever might turn out to begin one.

    The stop string that is complete first wins, of several the longest, however the text is cut into pieces. For each
    stop string it keeps the length of its longest prefix that the text so far ends in (Knuth, Morris, Pratt 1977).
    """

    def __init__(self, stop_strings: Iterable[str], include_stop: bool = False) -> None:
        """`include_stop`: whether the text that is given out ends with the stop string or before it. None may be empty."""
        self._stops = sorted(stop_strings, key=len, reverse=True)
        self._failures = [_failure_function(stop) for stop in self._stops]
        self._lengths = [0] * len(self._stops)
        self._first_chars = frozenset(stop[0] for stop in self._stops)
        self._include_stop = include_stop
        self._held = ""
        self.found: str | None = None
        """The stop string that was found; nothing may be pushed after it."""

    def push(self, text: str, is_armed: bool = True) -> str:
        """The text that can be given out now. Stop strings that end in a piece that is not armed do not count."""
        if not self._held and self._first_chars.isdisjoint(text):
            return text  # Nearly every piece: no stop string is under way and none begins here.
        self._held += text
        start = len(self._held) - len(text)
        for position, char in enumerate(text, start + 1):
            found = self._step(char)
            if found is not None and is_armed:
                self.found = found
                end = position if self._include_stop else position - len(found)
                return self._release(end)
        return self._release(len(self._held) - max(self._lengths))

    def flush(self) -> str:
        """What is held back, at the end of the text; nothing after a stop string."""
        return "" if self.found is not None else self._release(len(self._held))

    def _step(self, char: str) -> str | None:
        """Take in one character; the longest stop string that it completes."""
        found = None
        for index, stop in enumerate(self._stops):
            length, failure = self._lengths[index], self._failures[index]
            while length and stop[length] != char:
                length = failure[length - 1]
            if stop[length] == char:
                length += 1
            if length == len(stop):
                found = found or stop
                length = failure[length - 1]
            self._lengths[index] = length
        return found

    def _release(self, end: int) -> str:
        released, self._held = self._held[:end], self._held[end:]
        return released


def _failure_function(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is also its suffix."""
    failure = [0] * len(stop)
    for index in range(1, len(stop)):
        length = failure[index - 1]
        while length and stop[index] != stop[length]:
            length = failure[length - 1]
        failure[index] = length + (stop[index] == stop[length])
    return failure
