"""Opens the model that an actor's settings name: returns its config and a reader of its weights."""

from __future__ import annotations

import dataclasses

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.download import TensorNames, resolve
from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.dummy.presets import PRESETS, preset_config
from actors.checkpoint.reader import CheckpointReader, WeightReader
from actors.protocol.settings import ModelSource


def open_model(source: ModelSource, tensors_of: TensorNames) -> tuple[ModelConfig, WeightReader]:
    """Return the config and a reader; for a model on the hub, first download the weights that the role needs.

    With load_format "dummy" a preset needs no file and any other model needs only its config. Raises
    CheckpointError.
    """
    if source.load_format == "dummy":
        is_preset = source.model in PRESETS
        config = (
            preset_config(source.model or "") if is_preset else ModelConfig.from_directory(resolve(source))
        )
        config = dataclasses.replace(config, stored_quantization=None)
        return config, DummyReader(config)
    directory = resolve(source, tensors_of)
    return ModelConfig.from_directory(directory), CheckpointReader(directory)
