"""From the config to where weights, tokenizer and chat template are read."""

from __future__ import annotations

from actors.protocol.settings import ModelSource
from cluster.config.cluster_config import ClusterConfig
from cluster.config.environment import hub_token


def model_source(config: ClusterConfig) -> ModelSource:
    """Where the weights and the tokenizer come from."""
    return ModelSource(
        model=config.model,
        load_format=config.load_format,
        revision=config.revision,
        cache_dir=config.cache_dir,
        token=hub_token(),
    )
