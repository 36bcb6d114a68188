from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.exchange.links.dense.hedge_delay import HedgeDelay, HedgeLimits

LIMITS = HedgeLimits(shortest=0.15, longest=30.0)


def test_without_experience_it_is_some_of_the_shortest_and_at_most_the_longest() -> None:
    assert HedgeDelay(LIMITS).seconds(1) == 8 * 0.15
    assert HedgeDelay(HedgeLimits(shortest=0.15, longest=0.5)).seconds(1) == 0.5


def test_fast_answers_leave_the_shortest() -> None:
    hedge_delay = HedgeDelay(LIMITS)
    for _ in range(3):
        hedge_delay.learn(2, 0.001)
    assert hedge_delay.seconds(2) == 0.15


def test_more_rows_than_ever_are_granted_more_time_in_proportion() -> None:
    hedge_delay = HedgeDelay(LIMITS)
    hedge_delay.learn(1, 0.01)
    assert hedge_delay.seconds(1024) >= 1024 * 0.01
    assert hedge_delay.seconds(1) == 0.15


def test_one_process_that_hung_does_not_make_the_next_be_waited_for_as_long() -> None:
    hedge_delay = HedgeDelay(LIMITS)
    for _ in range(10):
        hedge_delay.learn(2, 0.005)
    hedge_delay.learn(2, 20.0)
    assert hedge_delay.seconds(2) <= 4 * 0.15
    for _ in range(60):
        hedge_delay.learn(2, 0.005)
    assert hedge_delay.seconds(2) == 0.15


def test_if_all_answers_become_slow_it_follows() -> None:
    hedge_delay = HedgeDelay(LIMITS)
    hedge_delay.learn(2, 0.005)
    for _ in range(5):
        hedge_delay.learn(2, 2.0)
    assert hedge_delay.seconds(2) >= 8.0


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1000))), st.integers(1, 5000))
def test_it_stays_within_its_limits(answers: list[tuple[int, float]], num_rows: int) -> None:
    hedge_delay = HedgeDelay(LIMITS)
    for rows, seconds in answers:
        hedge_delay.learn(rows, seconds)
    assert 0.15 <= hedge_delay.seconds(num_rows) <= 30.0
