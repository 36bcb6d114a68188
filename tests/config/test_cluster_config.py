"""Tests that flags, YAML and mappings lead to the same checked ClusterConfig."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from cluster.config.cluster_config import ClusterConfig, from_mapping
from cluster.config.sources import add_flags, from_flags, read_yaml


def parse(*arguments: str) -> ClusterConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_flags(parser.parse_args(arguments))


def test_no_flags_give_the_defaults() -> None:
    assert parse() == ClusterConfig()


def test_every_key_but_model_is_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = set(parser.format_help().split())
    missing = [
        item.name for item in fields(ClusterConfig) if f"--{item.name.replace('_', '-')}" not in str(flags)
    ]
    assert missing == ["model"]


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "phimoe.yaml"
    path.write_text("expert_actors: 3\nport: 8100\nexchange: all_to_all\n")
    config = parse("some/model", "--config", str(path), "--port", "8200")
    assert config == ClusterConfig(model="some/model", expert_actors=3, port=8200, exchange="all_to_all")


def test_yaml_of_a_config_reads_back_equal(tmp_path: Path) -> None:
    config = ClusterConfig(expert_actors=5, dtype="float32", dashboard=True, kv_cache_bytes=1 << 30)
    path = tmp_path / "phimoe.yaml"
    path.write_text(yaml.safe_dump(config.to_mapping()))
    assert from_mapping(read_yaml(path)) == config


def test_mapping_of_a_config_reads_back_equal() -> None:
    config = ClusterConfig(host="0.0.0.0", request_deadline_seconds=5)
    assert from_mapping(config.to_mapping()) == config


@pytest.mark.parametrize(
    ("key", "closest"),
    [("prot", "port"), ("expert-actor", "expert_actors"), ("max_seq_len", "max_model_len")],
)
def test_an_unknown_key_is_named_with_the_closest_known_one(key: str, closest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key '{key}'.*'{closest}'"):
        from_mapping({key: 1})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        pytest.param({"port": "x"}, "port is 'x', expected a whole number", id="text-for-number"),
        pytest.param({"port": 70000}, "port is 70000, expected 1 to 65535", id="above-range"),
        pytest.param({"port": True}, "port is True, expected a whole number", id="boolean-for-number"),
        pytest.param({"max_num_sequences": 0}, "max_num_sequences is 0", id="below-range"),
        pytest.param({"expert_actors": 17}, "expert_actors is 17, expected 0 to 16", id="more-than-experts"),
        pytest.param({"exchange": "carrier"}, "exchange is 'carrier', expected one of links", id="no-choice"),
        pytest.param(
            {"expert_quantization": "int2"},
            "expert_quantization is 'int2', expected one of int8, int4, fp8",
            id="no-such-quantization",
        ),
        pytest.param(
            {"expert_quantization": "int4", "device": "cuda"},
            "expert_quantization is 'int4', which needs device cpu, not cuda",
            id="int4-on-cuda",
        ),
        pytest.param(
            {"expert_quantization": "fp8", "device": "cpu"},
            "expert_quantization is 'fp8', which needs device cuda, not cpu",
            id="fp8-on-cpu",
        ),
        pytest.param(
            {"dense_quantization": "fp8"},
            "dense_quantization is 'fp8', expected one of int8, int4",
            id="no-such-dense-quantization",
        ),
        pytest.param(
            {"dense_quantization": "int8", "device": "cuda"},
            "dense_quantization is 'int8', which needs device cpu, not cuda",
            id="dense-int8-on-cuda",
        ),
        pytest.param(
            {"dense_quantization": "int8", "expert_quantization": "fp8"},
            "dense_quantization is 'int8', which needs device cpu, but expert_quantization 'fp8' needs cuda",
            id="dense-int8-beside-fp8",
        ),
        pytest.param({"dtype": None}, "dtype is None, expected a text", id="none-where-required"),
        pytest.param({"model": ""}, "model is empty", id="empty-name"),
        pytest.param(
            {"dashboard": "yes"}, "dashboard is 'yes', expected true or false", id="text-for-boolean"
        ),
        pytest.param(
            {"request_deadline_seconds": float("nan")}, "request_deadline_seconds is nan", id="not-a-number"
        ),
        pytest.param(
            {"exchange": "local", "expert_actors": 2}, "expert_actors is 2", id="local-with-experts"
        ),
        pytest.param({"expert_actors": 0}, "expert_actors is 0", id="links-without-experts"),
        pytest.param(
            {"expert_actors": 2, "expert_replicas": 3},
            "expert_replicas is 3, expected at most 2",
            id="more-replicas-than-actors",
        ),
        pytest.param({"hung_after_seconds": 0}, "hung_after_seconds is 0", id="no-time"),
        pytest.param({"replace_after_seconds": -1}, "replace_after_seconds is -1", id="replaced-before"),
        pytest.param({"port": 9000}, "grpc_port is 9000, the same as port", id="same-ports"),
        pytest.param({"load_format": "dummy"}, "model is none", id="dummy-without-preset"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_field_and_value(
    mapping: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_mapping(mapping)


@pytest.mark.parametrize(
    ("kind", "device"), [("int8", "cpu"), ("int8", "cuda"), ("int4", "cpu"), ("fp8", "cuda"), ("fp8", "auto")]
)
def test_a_quantization_goes_with_every_device_that_serves_it(kind: str, device: str) -> None:
    assert ClusterConfig(expert_quantization=kind, device=device).expert_quantization == kind


def test_a_config_file_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"list\.yaml must hold keys and values"):
        read_yaml(path)


def test_local_exchange_has_no_expert_actors() -> None:
    assert ClusterConfig(exchange="local").num_expert_actors == 0
    assert ClusterConfig().num_expert_actors == 2


def test_listeners_do_not_change_the_actor_hash_but_the_model_does() -> None:
    plain = ClusterConfig()
    assert ClusterConfig(port=1234, host="::", served_model_name="x").actor_hash() == plain.actor_hash()
    assert ClusterConfig(expert_actors=2).actor_hash() == plain.actor_hash()
    assert ClusterConfig(dtype="float32").actor_hash() != plain.actor_hash()


def test_a_directory_is_served_under_its_last_name(tmp_path: Path) -> None:
    assert ClusterConfig(model=str(tmp_path)).model_id == tmp_path.name
    assert ClusterConfig(model="owner/name").model_id == "owner/name"
    assert ClusterConfig(model="owner/name", served_model_name="phi").model_id == "phi"
