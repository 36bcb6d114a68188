"""Streams that run while faults happen. Each is compared token by token with a run without faults."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx

NUM_STREAMS = 4
MAX_TOKENS = 200
_CLIENT_SECONDS = 120.0


def body(seed: int) -> dict[str, Any]:
    """Return a request each of whose tokens depends on all tokens before it."""
    return {
        "prompt": f"Solve {seed + 2}x + 3 = 7",
        "max_tokens": MAX_TOKENS,
        "temperature": 1.0,
        "seed": seed,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
    }


@dataclass(kw_only=True, slots=True)
class Reading:
    """One stream as its client saw it."""

    status: int = 0
    token_ids: list[int] = field(default_factory=list)
    longest_pause_seconds: float = 0.0
    """The longest time between two tokens, or from the request to the first token."""
    error: dict[str, Any] | None = None
    """The error that ended the stream, or the body of an answer that is an error."""
    is_broken: bool = False
    """Whether the connection ended before the stream was complete."""


def read_stream(url: str, seed: int, reading: Reading | None = None) -> Reading:
    """Send one request and read its stream to the end. Another thread can watch `reading` meanwhile."""
    reading = Reading() if reading is None else reading
    last = time.monotonic()
    try:
        with (
            httpx.Client(base_url=url, timeout=_CLIENT_SECONDS, trust_env=False) as client,
            client.stream("POST", "/v1/completions", json=body(seed)) as response,
        ):
            reading.status = response.status_code
            if response.status_code != 200:
                reading.error = json.loads(response.read())["error"]
                return reading
            is_done = False
            for line in response.iter_lines():
                is_done = is_done or line == "data: [DONE]"
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    reading.error = chunk["error"]
                    continue
                reading.token_ids += chunk["choices"][0]["token_ids"]
                now = time.monotonic()
                reading.longest_pause_seconds = max(reading.longest_pause_seconds, now - last)
                last = now
            reading.is_broken = not is_done and reading.error is None
    except httpx.TransportError:
        reading.is_broken = True
    return reading


class Streams:
    """Keeps several streams running while the block lasts; a stream that ends is followed by a new one."""

    def __init__(self, url: str, expected: list[list[int]]) -> None:
        self._url, self._expected = url, expected
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(NUM_STREAMS)]
        self.readings: list[Reading] = []
        """The streams that have ended."""
        self.faults: list[str] = []

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * _CLIENT_SECONDS)

    def summary(self) -> str:
        """Return the figures of this run."""
        pauses = sorted(reading.longest_pause_seconds for reading in self.readings)
        return f"{len(pauses)} streams, longest pauses {', '.join(f'{pause:.2f}' for pause in pauses[-6:])} s"

    @property
    def longest_pause_seconds(self) -> float:
        """The longest pause that any client saw."""
        return max(reading.longest_pause_seconds for reading in self.readings)

    def _run(self, seed: int) -> None:
        while not self._is_over.is_set():
            reading = read_stream(self._url, seed)
            self.readings.append(reading)
            if reading.token_ids != self._expected[seed]:
                same = sum(a == b for a, b in zip(reading.token_ids, self._expected[seed], strict=False))
                self.faults.append(
                    f"seed {seed}: status {reading.status}, {len(reading.token_ids)} tokens, "
                    f"{same} as expected, broken {reading.is_broken}, error {reading.error}"
                )
                self._is_over.wait(0.5)
