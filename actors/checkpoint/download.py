"""Turns the name of a model into a directory: the embedded one, a local one, or a download from the hub.

Each role downloads only the files that it needs. All actors of a host may share the hub's cache, which locks
a file while one of them downloads it.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from actors.checkpoint.config import CONFIG_FILE, GENERATION_CONFIG_FILE, ModelConfig
from actors.checkpoint.index import INDEX_FILE, SINGLE_FILE, read_index, shards_of
from actors.errors import DownloadError
from actors.protocol.settings import ModelSource

TINY = "tiny"

TensorNames = Callable[[ModelConfig], Iterable[str]]
"""Returns the names of the tensors that a role needs, for example `layout.dense_tensor_names`."""

SMALL_FILES = (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    INDEX_FILE,
)


def resolve(source: ModelSource, tensors_of: TensorNames | None = None) -> Path:
    """Return a directory with the model's config, its tokenizer and, if `tensors_of` is given, those tensors.

    None and "tiny" name the embedded model. A directory is returned unchecked. Any other name is looked up on
    the hub: the small files are downloaded first, then only the shards that hold the tensors, all from one
    commit. Blocks for as long as the download takes. Raises DownloadError, and the errors of reading the
    config and the index.
    """
    local = find_local(source.model)
    if local is not None:
        return local
    directory = _fetch(source, source.revision, SMALL_FILES)
    if tensors_of is not None:
        # The snapshot's folder is named after its commit, so the weights come from the same commit as the
        # config.
        _fetch(source, directory.name, _weight_files(directory, tensors_of))
    return directory


def find_local(model: str | None) -> Path | None:
    """Return the directory of a model that needs no download, or None for a model on the hub.

    Raises DownloadError if the name is a path and no directory exists there.
    """
    if model is None or model == TINY:
        return embedded_directory()
    local = Path(model).expanduser()
    if local.is_dir():
        return local
    if local.exists() or _looks_like_path(model):
        raise DownloadError(model, "it is no existing directory", "check the path")
    return None


def embedded_directory() -> Path:
    """Return the directory of the tiny model inside the package."""
    return Path(str(importlib.resources.files("actors.checkpoint") / TINY))


def _looks_like_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~")) or model.count("/") > 1


def _weight_files(directory: Path, tensors_of: TensorNames) -> Sequence[str]:
    config = ModelConfig.from_directory(directory)
    index = directory / INDEX_FILE
    if not index.exists():
        return (SINGLE_FILE,)
    return shards_of(read_index(index), tensors_of(config), index)


def _fetch(source: ModelSource, revision: str | None, files: Sequence[str]) -> Path:
    """Download those of these files that the repository has into the cache. Raises DownloadError."""
    # The import is slow and reads the environment, and local models do not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    model = source.model
    assert model is not None
    try:
        path = snapshot_download(
            model,
            revision=revision,
            cache_dir=source.cache_dir,
            token=source.token,
            allow_patterns=list(files),
        )
    except HFValidationError as error:
        raise DownloadError(
            model, f"it is neither a directory nor a hub name ({error})", "give a directory or owner/name"
        ) from error
    except GatedRepoError as error:
        raise DownloadError(
            model,
            "its owner has to grant access (gated repository)",
            "ask for access on its page and pass a token of that account, or set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            model,
            "there is no such directory here and no such public repository on the hub",
            "check the name; a private repository needs a token with access (or HF_TOKEN)",
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(
            model, f"it has no revision {revision!r}", "name a branch, tag or commit"
        ) from error
    except LocalEntryNotFoundError as error:
        raise DownloadError(
            model,
            f"the hub cannot be reached and the cache lacks some of its files ({_first_line(error)})",
            "check the network and HF_ENDPOINT, or give a directory that holds the model",
        ) from error
    except Exception as error:
        # The hub's client lets errors of its HTTP library through, and each version may use another library.
        raise DownloadError(
            model,
            f"{type(error).__name__}: {_first_line(error)}",
            "check the free space, the network and the hub",
        ) from error
    return Path(path)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
