"""gRPC gives the same results as HTTP, with gRPC's own statuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from protos import admin_pb2, admin_pb2_grpc, serving_pb2, serving_pb2_grpc
from tests.end_to_end.running import Running

pytestmark = pytest.mark.timeout(300)
PROMPTS = ["Solve 2x + 3 = 7", "1 + 1 ="]


@pytest.fixture
def channel(service: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> serving_pb2_grpc.ServingStub:
    return serving_pb2_grpc.ServingStub(channel)


def prompts(*texts: str) -> list[serving_pb2.Prompt]:
    return [serving_pb2.Prompt(text=text) for text in texts]


def gathered(responses: Any) -> dict[int, dict[str, Any]]:
    """Merge the responses of each choice of a stream."""
    choices: dict[int, dict[str, Any]] = {}
    for response in responses:
        choice = choices.setdefault(
            response.index, {"text": "", "token_ids": [], "logprobs": [], "finish": 0}
        )
        choice["text"] += response.text
        choice["token_ids"] += response.token_ids
        choice["logprobs"] += [entry.logprob for entry in response.logprobs]
        choice["finish"] = response.finish_reason
        choice["usage"] = response.usage
    return choices


def test_generate_equals_http(service: Running, stub: serving_pb2_grpc.ServingStub) -> None:
    sampling = serving_pb2.SamplingParams(max_tokens=12, temperature=1.0, seed=11, n=2, logprobs=0)
    choices = gathered(
        stub.Generate(serving_pb2.GenerateRequest(prompts=prompts(*PROMPTS), sampling=sampling))
    )
    body = {"prompt": PROMPTS, "max_tokens": 12, "temperature": 1.0, "seed": 11, "n": 2, "logprobs": 0}
    with service.client() as client:
        answer = client.post("/v1/completions", json={**body, "return_token_ids": True}).json()
    assert len(answer["choices"]) == len(choices) == 4
    for choice in answer["choices"]:
        other = choices[choice["index"]]
        assert other["text"] == choice["text"]
        assert other["token_ids"] == choice["token_ids"]
        # The sequences that share a step differ between the two runs.
        assert other["logprobs"] == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)


def test_chat_equals_http_and_reports_usage(service: Running, stub: serving_pb2_grpc.ServingStub) -> None:
    request = serving_pb2.ChatRequest(
        messages=[serving_pb2.Message(role="user", content=PROMPTS[0])],
        sampling=serving_pb2.SamplingParams(temperature=0),
    )
    responses = list(stub.Chat(request))
    messages = [{"role": "user", "content": PROMPTS[0]}]
    with service.client() as client:
        answer = client.post("/v1/chat/completions", json={"messages": messages, "temperature": 0}).json()
    text = "".join(response.text for response in responses)
    assert text == answer["choices"][0]["message"]["content"] != ""
    assert responses[-1].finish_reason == serving_pb2.FINISH_REASON_STOP
    usage = responses[-1].usage
    assert {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens} == {
        name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    }


def test_a_prompt_that_was_computed_before_is_reported_and_a_salt_hides_it(
    stub: serving_pb2_grpc.ServingStub,
) -> None:
    prompt = serving_pb2.Prompt(token_ids=serving_pb2.TokenIds(ids=range(400, 440)))
    sampling = serving_pb2.SamplingParams(max_tokens=4, temperature=0)
    cached = []
    for salt in ("one", "one", "two"):
        request = serving_pb2.GenerateRequest(prompts=[prompt], sampling=sampling, cache_salt=salt)
        cached.append([*stub.Generate(request)][-1].usage.cached_tokens)
    assert cached == [0, 32, 0]


def test_token_ids_as_prompt_and_a_stop_string(stub: serving_pb2_grpc.ServingStub) -> None:
    ids = stub.Tokenize(serving_pb2.TokenizeRequest(text="Hello there")).token_ids
    assert stub.Detokenize(serving_pb2.DetokenizeRequest(token_ids=ids)).text == "Hello there"
    prompt = serving_pb2.Prompt(token_ids=serving_pb2.TokenIds(ids=ids))
    sampling = serving_pb2.SamplingParams(max_tokens=8, temperature=0)
    (plain,) = gathered(
        stub.Generate(serving_pb2.GenerateRequest(prompts=[prompt], sampling=sampling))
    ).values()
    stop = plain["text"][1:3]
    sampling.stop.append(stop)
    responses = list(stub.Generate(serving_pb2.GenerateRequest(prompts=[prompt], sampling=sampling)))
    assert "".join(response.text for response in responses) == plain["text"][: plain["text"].index(stop)]
    assert responses[-1].stop_string == stop


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        pytest.param({"model": "other", "prompts": prompts("a")}, "NOT_FOUND", "other", id="unknown-model"),
        pytest.param({}, "INVALID_ARGUMENT", "prompt", id="no-prompt"),
        pytest.param(
            {"prompts": [serving_pb2.Prompt()]}, "INVALID_ARGUMENT", "prompts", id="prompt-without-content"
        ),
        pytest.param(
            {"prompts": prompts("a"), "sampling": serving_pb2.SamplingParams(temperature=7)},
            "INVALID_ARGUMENT",
            "temperature: 7",
            id="out-of-range",
        ),
    ],
)
def test_a_wrong_request_has_its_status(
    stub: serving_pb2_grpc.ServingStub, request_: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(serving_pb2.GenerateRequest(**request_)))
    assert caught.value.code() == getattr(grpc.StatusCode, code)
    assert words in caught.value.details()


def long_request() -> serving_pb2.GenerateRequest:
    sampling = serving_pb2.SamplingParams(max_tokens=1500, ignore_eos=True)
    return serving_pb2.GenerateRequest(prompts=prompts("Hello"), sampling=sampling)


def test_a_deadline_ends_the_call_and_frees_its_place(
    service: Running, stub: serving_pb2_grpc.ServingStub
) -> None:
    service.wait_until_idle()
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(long_request(), timeout=0.5))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    load = service.wait_until_idle(seconds=5)
    assert load["free_blocks"] == load["total_blocks"]
    assert time.monotonic() - began < 10


def test_a_cancelled_call_frees_its_place(service: Running, stub: serving_pb2_grpc.ServingStub) -> None:
    service.wait_until_idle()
    call = stub.Generate(long_request())
    next(call)
    call.cancel()
    load = service.wait_until_idle(seconds=5)
    assert load["running"] == 0 and load["free_blocks"] == load["total_blocks"]


def test_model_info_says_what_is_served(stub: serving_pb2_grpc.ServingStub) -> None:
    info = stub.ModelInfo(serving_pb2.ModelInfoRequest())
    assert info.model == "phimoe-tiny" and info.is_ready and info.has_chat_template and info.max_model_len > 0


def test_without_keys_this_host_may_ask_for_the_status(channel: grpc.Channel) -> None:
    status = admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=30)
    assert {actor.kind for actor in status.actors} == {"dense", "expert", "supervisor"}


def test_health_is_served_by_the_standard_protocol(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="phimoe.v1.Serving")
    assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
    watch = health.Watch(request)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    listed = health.List(health_pb2.HealthListRequest()).statuses
    assert listed["phimoe.v1.Admin"].status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_describes_the_service_to_a_standard_client(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {"phimoe.v1.Serving", "phimoe.v1.Admin", "grpc.health.v1.Health"} <= set(database.get_services())
    methods = DescriptorPool(database).FindServiceByName("phimoe.v1.Serving").methods_by_name
    assert set(methods) == {"Generate", "Chat", "Tokenize", "Detokenize", "ModelInfo"}
