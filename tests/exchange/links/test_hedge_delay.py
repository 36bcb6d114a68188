from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.exchange.links.dense.hedge_delay import Patience, PatienceLimits

LIMITS = PatienceLimits(shortest=0.15, longest=30.0)


def test_without_experience_it_is_some_of_the_shortest_and_at_most_the_longest() -> None:
    assert Patience(LIMITS).seconds(1) == 8 * 0.15
    assert Patience(PatienceLimits(shortest=0.15, longest=0.5)).seconds(1) == 0.5


def test_fast_answers_leave_the_shortest() -> None:
    patience = Patience(LIMITS)
    for _ in range(3):
        patience.learn(2, 0.001)
    assert patience.seconds(2) == 0.15


def test_more_rows_than_ever_are_granted_more_time_in_proportion() -> None:
    patience = Patience(LIMITS)
    patience.learn(1, 0.01)
    assert patience.seconds(1024) >= 1024 * 0.01
    assert patience.seconds(1) == 0.15


def test_one_process_that_hung_does_not_make_the_next_be_waited_for_as_long() -> None:
    patience = Patience(LIMITS)
    for _ in range(10):
        patience.learn(2, 0.005)
    patience.learn(2, 20.0)
    assert patience.seconds(2) <= 4 * 0.15
    for _ in range(60):
        patience.learn(2, 0.005)
    assert patience.seconds(2) == 0.15


def test_if_all_answers_become_slow_it_follows() -> None:
    patience = Patience(LIMITS)
    patience.learn(2, 0.005)
    for _ in range(5):
        patience.learn(2, 2.0)
    assert patience.seconds(2) >= 8.0


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1000))), st.integers(1, 5000))
def test_it_stays_within_its_limits(answers: list[tuple[int, float]], num_rows: int) -> None:
    patience = Patience(LIMITS)
    for rows, seconds in answers:
        patience.learn(rows, seconds)
    assert 0.15 <= patience.seconds(num_rows) <= 30.0
