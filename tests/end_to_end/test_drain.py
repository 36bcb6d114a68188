"""A service that is told to end finishes its requests within the grace period and accepts no new ones."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from protos import serving_pb2, serving_pb2_grpc
from tests.end_to_end.running import Running, serving

pytestmark = pytest.mark.timeout(300)
LOCAL = ("--exchange", "local", "--dtype", "float32")


class Stream:
    """One streamed completion, read on a thread of its own."""

    def __init__(self, service: Running, max_tokens: int) -> None:
        self.num_tokens = 0
        self.error: dict[str, Any] | None = None
        self.is_done = False
        self._service, self._max_tokens = service, max_tokens
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        give_up = time.monotonic() + 30
        while self.num_tokens == 0 and time.monotonic() < give_up:
            time.sleep(0.01)

    def join(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        body = {
            "prompt": "Hello",
            "max_tokens": self._max_tokens,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        with (
            self._service.client() as client,
            client.stream("POST", "/v1/completions", json=body) as response,
        ):
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    self.is_done = True
                elif line.startswith("data: {"):
                    frame = json.loads(line[6:])
                    self.error = frame.get("error", self.error)
                    self.num_tokens += sum(len(choice["token_ids"]) for choice in frame.get("choices", ()))


def refusal(service: Running) -> httpx.Response:
    """Send requests until one is refused, and return that answer."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        with service.client() as client:
            response = client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 1})
        if response.status_code != 200:
            return response
        time.sleep(0.05)
    raise AssertionError("requests are still answered")


def test_a_terminated_service_finishes_its_streams_and_refuses_new_ones(tmp_path: Path) -> None:
    with serving(tmp_path, *LOCAL, "--drain-grace-seconds", "60") as service:
        stream = Stream(service, 700)
        service.process.send_signal(signal.SIGTERM)
        refused = refusal(service)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "unavailable"
        with service.client() as client:
            assert client.get("/health").status_code == 503
        with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
            prompts = [serving_pb2.Prompt(text="Hello")]
            call = serving_pb2_grpc.ServingStub(channel).Generate(
                serving_pb2.GenerateRequest(prompts=prompts)
            )
            with pytest.raises(grpc.RpcError):
                next(call)
            assert call.code() == grpc.StatusCode.UNAVAILABLE
            assert int(dict(call.trailing_metadata())["retry-after"]) >= 1
        stream.join()
        assert stream.is_done and stream.num_tokens == 700 and stream.error is None
        assert service.process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["grace-period", "second-signal"])
def test_streams_that_take_too_long_end_with_an_error(tmp_path: Path, way: str) -> None:
    grace = "1" if way == "grace-period" else "60"
    with serving(tmp_path, *LOCAL, "--drain-grace-seconds", grace) as service:
        streams = [Stream(service, 1900) for _ in range(3)]
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        if way == "second-signal":
            assert refusal(service).status_code == 503
            service.process.send_signal(signal.SIGTERM)
        for stream in streams:
            stream.join()
            assert not stream.is_done and 0 < stream.num_tokens < 1900
            assert stream.error is not None and stream.error["code"] == "unavailable"
        assert time.monotonic() - began < 10
        assert service.process.wait(60) == 0
