"""Says where weights, tokenizer and chat template are read from, given the config."""

from __future__ import annotations

from actors.protocol.settings import ModelSource
from cluster.config.cluster_config import ClusterConfig
from cluster.config.environment import hub_token


def model_source(config: ClusterConfig) -> ModelSource:
    """Return the source of the weights and the tokenizer, with the hub's token from the environment."""
    return ModelSource(
        model=config.model,
        load_format=config.load_format,
        revision=config.revision,
        cache_dir=config.cache_dir,
        token=hub_token(),
    )
