from __future__ import annotations

import pickle

import pytest

from actors.errors import DeadlineError, ExchangeError, ExpertFailedError, LinkError, StaleEpochError

EXAMPLES: list[tuple[ExchangeError, str]] = [
    (LinkError("expert-3", 7, "closed"), "link to expert-3 in layer 7: closed"),
    (LinkError("expert-3", None, "closed"), "link to expert-3: closed"),
    (DeadlineError("expert-3", 7, "message", 1.5), "expert-3 in layer 7: no message within 1.5 s"),
    (StaleEpochError(3, 4), "membership of epoch 3 is stale, epoch 4 is in force"),
    (ExpertFailedError("expert-3", 7, "out of memory"), "expert-3 in layer 7 failed: out of memory"),
]


@pytest.mark.parametrize(("error", "sentence"), EXAMPLES)
def test_an_error_survives_a_process_boundary(error: ExchangeError, sentence: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and vars(copy) == vars(error)
    assert str(copy) == str(error) == sentence
