"""Reads a ClusterConfig from a YAML file and from the flags of `phimoe serve`, which override the file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from cluster.config.cluster_config import ClusterConfig, base_type, field_types, from_mapping

_UNITS = ("bytes", "tokens", "port", "seconds")


def read_yaml(path: Path) -> dict[str, object]:
    """Return the keys of one config file. Raises ValueError that names the file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read config {path}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"config {path} must hold keys and values, not {type(content).__name__}")
    return content


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `[MODEL]`, `--config` and one flag for each field to a parser.

    Flags that are not given set no value.
    """
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help=_help_of("model")
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, default=None, help="YAML file with the same keys"
    )
    for name, hint in field_types().items():
        if name == "model":
            continue
        flag = "--" + name.replace("_", "-")
        if hint is bool:
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=_help_of(name)
            )
            continue
        parser.add_argument(
            flag,
            type=base_type(hint),
            default=argparse.SUPPRESS,
            metavar=_metavar(name, base_type(hint)),
            help=_help_of(name),
        )


def from_flags(namespace: argparse.Namespace) -> ClusterConfig:
    """Return the config of a parsed command line: the file's keys, overridden by the flags that are given."""
    mapping = read_yaml(namespace.config) if namespace.config is not None else {}
    mapping.update({name: value for name, value in vars(namespace).items() if name in field_types()})
    return from_mapping(mapping)


def _metadata(name: str) -> Mapping[str, Any]:
    return next(item.metadata for item in fields(ClusterConfig) if item.name == name)


def _metavar(name: str, value_type: type) -> str:
    """What --help shows for the value: its choices, its unit, or N for another number."""
    choices, last_word = _metadata(name)["choices"], name.rpartition("_")[2]
    if choices:
        return "|".join(choices)
    return "N" if value_type in (int, float) and last_word not in _UNITS else last_word.upper()


def _help_of(name: str) -> str:
    item = next(item for item in fields(ClusterConfig) if item.name == name)
    return f"{item.metadata['help']} (default: {'none' if item.default is None else item.default})"
