import inspect
import pickle

import pytest

from actors import errors
from actors.errors import (
    ActorError,
    CheckpointError,
    ConfigError,
    DownloadError,
    MissingTensorError,
    TensorMismatchError,
    UnreadableFileError,
)

EVERY_ERROR = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ActorError)
]
SAMPLE = {"str": "some text", "int": 3, "int | None": 2, "float": 1.5, "tuple[int, ...]": (4, 5)}
"""An example value for each type of an error's parameter."""


def example(kind: type[ActorError]) -> ActorError:
    if "__init__" not in vars(kind):
        return kind("some text")
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return kind(*(SAMPLE[parameter.annotation] for parameter in parameters))


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_an_error_survives_a_process_boundary(kind: type[ActorError]) -> None:
    error = example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            ConfigError("config.json", "vocab_size", "0", "more"),
            "config.json: vocab_size is 0, expected more",
        ),
        (UnreadableFileError("a.safetensors", "is truncated"), "a.safetensors: is truncated"),
        (MissingTensorError("index.json", "lm_head.bias"), "index.json: tensor lm_head.bias is missing"),
        (
            TensorMismatchError("a.safetensors", "w", "shape", "[2]", "[3]"),
            "a.safetensors: tensor w has shape [2], expected [3]",
        ),
        (DownloadError("me/it", "it is gone", "ask"), "cannot get model 'me/it': it is gone; ask"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_checkpoint_error_is_a_sentence_with_all_its_values(error: CheckpointError, sentence: str) -> None:
    assert str(error) == sentence


def test_the_docstring_draws_every_error() -> None:
    assert errors.__doc__ is not None
    drawn = [line.split()[0] for line in errors.__doc__.splitlines() if line.startswith("    ")]
    assert sorted(drawn) == sorted(kind.__name__ for kind in EVERY_ERROR)
