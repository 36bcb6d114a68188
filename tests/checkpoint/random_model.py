"""Writes random checkpoints of any config, for tests that need a checkpoint on disk."""

from __future__ import annotations

from pathlib import Path

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.dummy.small_files import write_config_files, write_tokenizer_files
from actors.checkpoint.weights import ProgressCallback
from actors.checkpoint.write import write_weights


def write_random_model(
    config: ModelConfig, directory: Path, progress: ProgressCallback | None = None, seed: int = 0
) -> None:
    """Write a checkpoint of this config into an existing directory; the vocabulary has at least 264
    tokens."""
    write_config_files(config, directory)
    write_tokenizer_files(config, directory)
    write_weights(config, DummyReader(config, seed), directory, progress)
