"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Iterable


class StopScanner:
    """Finds stop strings in text that comes in pieces, and holds back text that may be the beginning of one.

    The stop string that ends first in the text is found; if several end at the same character, the longest of
    them. How the text is cut into pieces does not matter. For each stop string, the scanner keeps the length
    of its longest prefix that the text so far ends with (Knuth, Morris, Pratt 1977).
    """

    def __init__(self, stop_strings: Iterable[str], include_stop: bool = False) -> None:
        """`include_stop` says whether the released text ends with the stop string or before it.

        No stop string may be empty.
        """
        self._stops = sorted(stop_strings, key=len, reverse=True)
        self._failures = [_failure_function(stop) for stop in self._stops]
        self._lengths = [0] * len(self._stops)
        self._first_chars = frozenset(stop[0] for stop in self._stops)
        self._include_stop = include_stop
        self._held = ""
        self.found: str | None = None
        """The stop string that was found. After that, nothing may be pushed."""

    def push(self, text: str, is_armed: bool = True) -> str:
        """Take in a piece and return the text that can be given out now.

        A stop string does not count if it ends in a piece for which `is_armed` is False.
        """
        if not self._held and self._first_chars.isdisjoint(text):
            return text  # This is the usual case: no stop string has begun, and none begins in this piece.
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
        """Return the text that is held back, at the end of the input; empty if a stop string was found."""
        return "" if self.found is not None else self._release(len(self._held))

    def _step(self, char: str) -> str | None:
        """Take in one character, and return the longest stop string that it completes, if any."""
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
    """Return for each prefix of `stop` the length of its longest proper prefix that is also its suffix."""
    failure = [0] * len(stop)
    for index in range(1, len(stop)):
        length = failure[index - 1]
        while length and stop[index] != stop[length]:
            length = failure[length - 1]
        failure[index] = length + (stop[index] == stop[length])
    return failure
