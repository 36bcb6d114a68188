import pickle

import grpc
import pytest

from actors import errors as rank_errors
from actors.errors import ActorError, ExchangeError, UnreadableFileError
from cluster import errors
from cluster.errors import (
    OUTCOMES,
    RANK_ERRORS,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    RequestFailed,
    ServerUnavailable,
    TooManyRequests,
    client_error,
    openai_body,
    outcome,
)


def _tree(root: type[Exception]) -> list[type[Exception]]:
    return [root, *(child for base in root.__subclasses__() for child in _tree(base))]


def _example(kind: type[ClientError]) -> ClientError:
    return kind("some words")


CLIENT_ERRORS = [kind for kind in _tree(ClientError) if kind is not ClientError]


def test_every_client_error_has_its_row_in_the_table() -> None:
    assert set(OUTCOMES) == set(CLIENT_ERRORS)


def test_every_client_error_is_drawn_in_the_docstring() -> None:
    assert errors.__doc__ is not None
    assert [kind.__name__ for kind in _tree(ClientError) if kind.__name__ not in errors.__doc__] == []


def test_every_rank_error_has_something_to_tell_a_client() -> None:
    kinds = [
        kind
        for kind in _tree(ActorError)
        if kind is not ActorError and kind.__module__ == rank_errors.__name__
    ]
    assert [kind.__name__ for kind in kinds if not any(base in RANK_ERRORS for base in kind.__mro__)] == []


@pytest.mark.parametrize("row", OUTCOMES.values(), ids=[kind.__name__ for kind in OUTCOMES])
def test_grpc_codes_exist(row: errors.Outcome) -> None:
    assert row.grpc in grpc.StatusCode.__members__
    assert 400 <= row.status < 600


@pytest.mark.parametrize("kind", CLIENT_ERRORS)
def test_client_errors_survive_pickling(kind: type[ClientError]) -> None:
    error = _example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.args, copy.__dict__, str(copy)) == (error.args, error.__dict__, str(error))


def test_what_is_beside_the_message_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(InvalidRequest("n: 0 is outside [1, 128]", "n")))
    assert copy.param == "n"
    assert pickle.loads(pickle.dumps(TooManyRequests("full", 7))).retry_after_seconds == 7
    assert pickle.loads(pickle.dumps(ServerUnavailable("loading", 9))).retry_after_seconds == 9


def test_bodies_have_openais_shape() -> None:
    assert openai_body(ModelNotFound("gpt-5")) == {
        "error": {
            "message": "model: 'gpt-5' is not served here",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert outcome(ModelNotFound("gpt-5")).status == 404


def test_details_of_a_rank_do_not_reach_the_client() -> None:
    told = client_error(UnreadableFileError("/secret/path", "truncated"))
    assert isinstance(told, ServerUnavailable)
    assert "secret" not in str(told)
    assert "secret" not in str(client_error(KeyError("secret")))


def test_other_exceptions_become_the_nearest_client_error() -> None:
    error = InvalidRequest("top_p: 2 is outside (0, 1]", "top_p")
    assert client_error(error) is error
    assert type(client_error(ExchangeError("gone"))) is ServerUnavailable
    assert type(client_error(TimeoutError())) is DeadlineExceeded
    assert type(client_error(ZeroDivisionError())) is RequestFailed
