from __future__ import annotations

import numpy as np
import pytest

from actors.exchange.split import owner_table, split_rows


def test_every_route_goes_to_exactly_one_actor_that_holds_its_expert() -> None:
    experts_of_actor = [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9, 10), (11, 12, 13, 14, 15)]
    generator = np.random.default_rng(0)
    ids = np.stack([generator.permutation(16)[:2] for _ in range(100)])
    shares = split_rows(ids, owner_table(experts_of_actor, 16), 3)
    seen = np.concatenate([share.targets for share in shares])
    assert sorted(seen.tolist()) == list(range(200))
    for share in shares:
        is_here = share.expert_ids >= 0
        assert np.isin(share.expert_ids[is_here], experts_of_actor[share.actor]).all()
        assert is_here.any(axis=1).all()
        routes = ids.reshape(-1)[share.targets]
        assert share.expert_ids[is_here].tolist() == routes.tolist()
        assert (share.tokens[np.nonzero(is_here)[0]] == share.targets // 2).all()


def test_an_actor_without_rows_gets_no_share() -> None:
    shares = split_rows(np.array([[0, 1], [2, 3]]), owner_table([range(4), range(4, 16)], 16), 2)
    assert [share.actor for share in shares] == [0]
    assert shares[0].tokens.tolist() == [0, 1]


def test_no_rows_make_no_shares() -> None:
    assert split_rows(np.empty((0, 2), np.int64), owner_table([range(16)], 16), 1) == []


def test_of_two_actors_with_an_expert_the_first_is_asked() -> None:
    assert owner_table([(0, 1), (1, 2)], 3).tolist() == [0, 0, 1]


def test_an_expert_that_nobody_holds_is_an_error() -> None:
    with pytest.raises(ValueError, match="expert 4 is held by no expert actor"):
        owner_table([range(4), range(5, 16)], 16)
