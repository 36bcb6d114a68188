"""Tests that the generated modules belong to the .proto files."""

from __future__ import annotations

import pytest

from protos.generate import stale_modules


def test_generated_modules_are_fresh() -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is a development dependency")
    assert stale_modules() == []
