"""Loads an actor's weights in a background thread; dense and expert actors share it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from actors.checkpoint.weights import ProgressCallback
from actors.protocol.messages import Progress

T = TypeVar("T")


class Loading(Generic[T]):
    """Calls `load` once, in a thread, and reports its progress. Any thread may call any method."""

    def __init__(self, name: str, load: Callable[[ProgressCallback], T]) -> None:
        self._load = load
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_started = False
        self._progress = Progress(state="starting", bytes_done=0, bytes_total=0)
        self.result: T | None = None
        """The return value of `load`; None until `load` has returned."""

    def start(self) -> None:
        """Start to load and return at once; a second call does nothing."""
        with self._guard:
            if not self._is_started:
                self._is_started = True
                self._thread.start()

    def progress(self) -> Progress:
        """Return the progress in stored bytes. The state "failed" is final and comes with the reason."""
        with self._guard:
            return self._progress

    def _run(self) -> None:
        try:
            result = self._load(self._note)
        except Exception as error:
            text = str(error) or repr(error)
            with self._guard:
                done, total = self._progress.bytes_done, self._progress.bytes_total
                self._progress = Progress(state="failed", bytes_done=done, bytes_total=total, error=text)
            return
        with self._guard:
            self.result = result
            total = self._progress.bytes_total
            self._progress = Progress(state="loaded", bytes_done=total, bytes_total=total)

    def _note(self, bytes_done: int, bytes_total: int) -> None:
        with self._guard:
            self._progress = Progress(state="loading", bytes_done=bytes_done, bytes_total=bytes_total)
