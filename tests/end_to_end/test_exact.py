"""HTTP, streamed HTTP and gRPC all give the tokens of a full forward pass."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.download import embedded_directory
from protos import serving_pb2, serving_pb2_grpc
from tests.dense.test_exact import TOLERANCE, greedy_reference, prompt
from tests.end_to_end.running import Running

pytestmark = pytest.mark.timeout(300)

LIMIT = ModelConfig.from_directory(embedded_directory()).rope.original_max_position_embeddings or 0
NUM_TOKENS = 12
CASES = [
    pytest.param(5, id="short"),
    pytest.param(LIMIT - 4, id="crosses-while-decoding"),
    pytest.param(LIMIT, id="at-the-limit"),
    pytest.param(LIMIT + 40, id="long"),
]


def expected(prompt_tokens: int) -> tuple[list[int], list[float]]:
    steps = greedy_reference(embedded_directory(), tuple(prompt(prompt_tokens)), NUM_TOKENS)
    return [token for token, _ in steps], [logprob for _, logprob in steps]


def body(prompt_tokens: int, **changes: Any) -> dict[str, Any]:
    fixed = {"max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    return {"prompt": prompt(prompt_tokens), "return_token_ids": True} | fixed | changes


def whole(client: httpx.Client, prompt_tokens: int) -> tuple[list[int], list[float]]:
    (choice,) = client.post("/v1/completions", json=body(prompt_tokens)).json()["choices"]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def streamed(client: httpx.Client, prompt_tokens: int) -> tuple[list[int], list[float]]:
    tokens: list[int] = []
    logprobs: list[float] = []
    with client.stream("POST", "/v1/completions", json=body(prompt_tokens, stream=True)) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    tokens += choice["token_ids"]
                    logprobs += (choice["logprobs"] or {}).get("token_logprobs", [])
    return tokens, logprobs


def over_grpc(service: Running, prompt_tokens: int) -> tuple[list[int], list[float]]:
    sampling = serving_pb2.SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, logprobs=0)
    prompts = [serving_pb2.Prompt(token_ids=serving_pb2.TokenIds(ids=prompt(prompt_tokens)))]
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        request = serving_pb2.GenerateRequest(prompts=prompts, sampling=sampling)
        answers = list(serving_pb2_grpc.ServingStub(channel).Generate(request, timeout=60))
    tokens = [token for answer in answers for token in answer.token_ids]
    return tokens, [entry.logprob for answer in answers for entry in answer.logprobs]


@pytest.mark.parametrize("prompt_tokens", CASES)
def test_every_protocol_gives_the_references_tokens(service: Running, prompt_tokens: int) -> None:
    tokens, logprobs = expected(prompt_tokens)
    with service.client() as client:
        answers = [whole(client, prompt_tokens), streamed(client, prompt_tokens)]
    for got_tokens, got_logprobs in [*answers, over_grpc(service, prompt_tokens)]:
        assert got_tokens == tokens
        assert got_logprobs == pytest.approx(logprobs, abs=TOLERANCE)


def test_thirty_two_at_once_give_the_references_tokens(service: Running) -> None:
    lengths = [3 + 6 * index for index in range(32)]
    with service.client() as client, ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda length: whole(client, length), lengths))
    for length, (tokens, _) in zip(lengths, answers, strict=True):
        assert tokens == expected(length)[0]
