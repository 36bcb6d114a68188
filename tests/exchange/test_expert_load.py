"""Rows of each expert, counted by ExpertLoad or by callers that add to its table."""

from __future__ import annotations

import numpy as np

from actors.exchange.expert_load import ExpertLoad


def test_routes_are_counted_layer_by_layer() -> None:
    load = ExpertLoad(3)
    assert load.rows() == ()
    load.count(1, np.array([[0, 2], [2, 1]]))
    load.count(1, np.array([[2, 2]]))
    assert load.rows() == ((0, 0, 0), (1, 1, 4))


def test_a_table_that_others_add_to_counts_until_there_are_more_layers() -> None:
    load = ExpertLoad(2)
    load.count(0, np.array([1]))
    table = load.table(2)
    table[1, 0] += 5
    assert load.table(1) is load.table(2) is table
    assert load.rows() == ((0, 1), (5, 0))
    assert load.table(3) is not table
    assert load.rows() == ((0, 1), (5, 0), (0, 0))
