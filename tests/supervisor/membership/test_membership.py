"""Tests membership: for events in any order, epochs only grow, and a round names only living actors."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.supervisor.membership.membership import (
    ActorKey,
    Added,
    Created,
    Decision,
    Died,
    EpochSeen,
    Event,
    Heard,
    Loaded,
    LoadFailed,
    Membership,
    Missing,
    Place,
    PlacementChanged,
    Removed,
    RoundEnded,
    Silent,
    StartLoading,
    StartRound,
    Steady,
    Table,
    Unlinked,
    advance,
    first,
)

DENSE, DENSE_1 = ActorKey("dense", 0), ActorKey("dense", 1)
EXPERT_0, EXPERT_1, EXPERT_2 = (ActorKey("expert", index) for index in range(3))
ONCE = (DENSE, EXPERT_0, EXPERT_1)
TABLE: Table = {0: (0, 1), 1: (2, 3)}
TWICE = (DENSE, DENSE_1, EXPERT_0, EXPERT_1, EXPERT_2)
DOUBLE_TABLE: Table = {0: (0, 1), 1: (1, 2), 2: (0, 2)}


def run(state: Membership, *events: Event) -> tuple[Membership, list[Decision]]:
    decisions: list[Decision] = []
    for event in events:
        state, new = advance(state, event)
        decisions += new
    return state, decisions


def empty(keys: tuple[ActorKey, ...] = ONCE, table: Table = TABLE) -> Membership:
    return first({key: Place() for key in keys}, table)


def double() -> Membership:
    return empty(TWICE, DOUBLE_TABLE)


def loaded(key: ActorKey, incarnation: str = "a") -> tuple[Event, Event]:
    return Created(key, incarnation), Loaded(key, incarnation)


def ready(state: Membership | None = None) -> Membership:
    state = state or empty()
    events = [event for key in state.places for event in loaded(key)]
    state, _ = run(state, *events, RoundEnded(1, frozenset(state.places)))
    assert state.is_ready and state.is_switched
    return state


def end(state: Membership) -> Membership:
    """Let all called actors join."""
    return run(state, RoundEnded(state.epoch, frozenset(state.called)))[0]


def test_actors_load_as_they_appear_and_meet_once_all_are_loaded() -> None:
    state, decisions = run(empty(), *loaded(DENSE), *loaded(EXPERT_0))
    assert decisions == [StartLoading(DENSE), StartLoading(EXPERT_0)]
    state, decisions = run(state, *loaded(EXPERT_1))
    assert decisions == [StartLoading(EXPERT_1), StartRound(1, 0)]
    assert not state.is_ready
    assert end(state).is_ready


def test_the_first_round_waits_for_replicas_too_unless_one_has_died() -> None:
    most = [event for key in TWICE[:-1] for event in loaded(key)]
    state, decisions = run(double(), *most, Created(EXPERT_2, "a"))
    assert not [item for item in decisions if isinstance(item, StartRound)]
    state, decisions = run(state, Died(EXPERT_2, "a"))
    assert decisions == [StartRound(1, 0)]
    assert EXPERT_2 not in state.called
    assert end(state).is_ready


def test_no_round_begins_without_a_table() -> None:
    state, decisions = run(empty(table={}), *[event for key in ONCE for event in loaded(key)])
    assert not [item for item in decisions if isinstance(item, StartRound)] and not state.is_ready
    assert run(state, PlacementChanged(TABLE))[1] == [StartRound(1, 0)]


def test_a_service_without_expert_actors_needs_no_table() -> None:
    state, decisions = run(empty((DENSE,), {}), *loaded(DENSE))
    assert decisions == [StartLoading(DENSE), StartRound(1, 0)]
    assert end(state).is_ready


def test_a_death_that_leaves_every_expert_a_holder_leads_to_a_round_without_it_at_once() -> None:
    state, decisions = run(ready(double()), Died(EXPERT_0, "a"))
    assert decisions == [StartRound(2, 0)]
    assert set(state.called) == {DENSE, DENSE_1, EXPERT_1, EXPERT_2}
    assert state.is_ready and state.places[DENSE].phase == "joined"
    state, decisions = run(end(state), *loaded(EXPERT_0, "b"))
    assert decisions == [StartLoading(EXPERT_0), StartRound(3, 0)]
    assert state.called[EXPERT_0] == "b"


def test_the_last_holder_of_an_expert_is_waited_for() -> None:
    state, decisions = run(ready(), Died(EXPERT_0, "a"))
    assert decisions == [] and not state.is_ready
    assert state.places[EXPERT_0].restarts == 1
    state, decisions = run(state, *loaded(EXPERT_0, "b"))
    assert decisions == [StartLoading(EXPERT_0), StartRound(2, 0)]
    state = end(state)
    assert state.is_ready and state.epoch == 2


def test_who_comes_or_goes_while_a_round_is_open_overtakes_it() -> None:
    state, _ = run(ready(double()), Died(EXPERT_0, "a"))
    state, decisions = run(state, Died(DENSE_1, "a"))
    assert decisions == [StartRound(3, 0)]
    after, decisions = run(state, RoundEnded(2, frozenset(TWICE)))
    assert after == state and decisions == []


def test_a_round_that_somebody_did_not_join_is_repeated_after_growing_pauses() -> None:
    state, _ = run(ready(double()), Died(EXPERT_0, "a"))
    pauses = []
    for _ in range(12):
        state, decisions = run(state, RoundEnded(state.epoch, frozenset({DENSE, EXPERT_1, EXPERT_2})))
        (decision,) = decisions
        assert isinstance(decision, StartRound) and decision.epoch == state.epoch
        pauses.append(decision.pause_seconds)
    assert pauses[0] == 0 and pauses == sorted(pauses) and pauses[-1] == 30
    assert state.places[DENSE_1].phase == "loaded" and state.places[DENSE].phase == "joined"
    assert state.is_ready


def test_an_actor_whose_links_break_leads_to_rounds_until_all_is_steady() -> None:
    state, decisions = run(ready(), Unlinked(DENSE, "a", 1))
    assert decisions == [StartRound(2, 0)]
    state, decisions = run(end(state), Unlinked(DENSE, "a", 2))
    assert decisions == [StartRound(3, 0.4)]
    state = end(state)
    assert run(state, Steady(2))[0].num_repairs == 2
    state, decisions = run(state, Steady(3), Unlinked(DENSE, "a", 3))
    assert decisions == [StartRound(4, 0)]


def test_broken_links_of_an_older_epoch_are_no_news() -> None:
    state, decisions = run(ready(), Unlinked(DENSE, "a", 0))
    assert decisions == [] and state.is_ready


def test_a_silent_actor_is_left_out_until_it_is_heard() -> None:
    state, decisions = run(ready(double()), Silent(EXPERT_1, "a"))
    assert decisions == [StartRound(2, 0)] and EXPERT_1 not in state.called
    state, decisions = run(end(state), Heard(EXPERT_1, "a"))
    assert decisions == [StartRound(3, 0)] and state.called[EXPERT_1] == "a"


def test_a_silent_dense_actor_may_still_use_the_old_table() -> None:
    state, _ = run(ready(double()), Silent(DENSE, "a"))
    state, _ = run(end(state), PlacementChanged({**DOUBLE_TABLE, 0: (0, 2)}))
    state = end(state)
    assert not state.is_switched
    assert run(state, Died(DENSE, "a"))[0].is_switched


def test_another_table_leads_to_a_round_that_dense_actors_switch_in() -> None:
    state, decisions = run(ready(), PlacementChanged({0: (0, 1, 2), 1: (2, 3)}))
    assert decisions == [StartRound(2, 0)] and not state.is_switched
    state, _ = run(state, RoundEnded(2, frozenset({EXPERT_0, EXPERT_1})))
    assert not state.is_switched
    assert end(state).is_switched


def test_an_added_actor_takes_part_once_the_table_gives_it_experts() -> None:
    state, decisions = run(ready(), Added(EXPERT_2), *loaded(EXPERT_2))
    assert decisions == [StartLoading(EXPERT_2)]
    state, decisions = run(state, PlacementChanged({0: (0, 1), 1: (2,), 2: (3,)}))
    assert decisions == [StartRound(2, 0)] and EXPERT_2 in state.called


def test_a_removed_actor_is_left_out_first() -> None:
    state, decisions = run(ready(double()), PlacementChanged({0: (0, 1), 1: (1, 2)}))
    assert decisions == [StartRound(2, 0)] and EXPERT_2 not in state.called
    state, decisions = run(end(state), Removed(EXPERT_2), Died(EXPERT_2, "a"))
    assert decisions == [] and EXPERT_2 not in state.places and state.is_ready


def test_news_of_a_process_that_is_gone_change_nothing() -> None:
    state = ready()
    for event in (
        Died(DENSE, "old"),
        Loaded(DENSE, "old"),
        LoadFailed(DENSE, "old", "x"),
        Silent(DENSE, "old"),
        RoundEnded(0, frozenset()),
        Missing(DENSE),
    ):
        assert advance(state, event) == (state, ())


def test_a_process_that_died_unseen_counts_as_a_restart() -> None:
    state, decisions = run(ready(), Created(EXPERT_1, "b"))
    assert decisions == [StartLoading(EXPERT_1)]
    assert state.places[EXPERT_1].restarts == 1 and not state.is_ready


def test_an_actor_that_cannot_load_stays_failed() -> None:
    events = [*loaded(DENSE), *loaded(EXPERT_0), Created(EXPERT_1, "a"), LoadFailed(EXPERT_1, "a", "no file")]
    state, decisions = run(empty(), *events)
    assert state.places[EXPERT_1].error == "no file"
    assert not [item for item in decisions if isinstance(item, StartRound)]


def known() -> Membership:
    """Return the state that a supervisor which died has left."""
    return first({key: Place(incarnation="a", restarts=2) for key in TWICE}, DOUBLE_TABLE, epoch=7)


def test_a_new_supervisor_holds_no_round_before_it_has_checked_every_place() -> None:
    state, decisions = run(known(), *[Created(key, "a", True) for key in TWICE[:-1]])
    assert decisions == []
    state, decisions = run(state, Created(EXPERT_2, "a", True))
    assert decisions == [StartRound(8, 0)] and set(state.called) == set(TWICE)
    assert all(place.restarts == 2 for place in state.places.values())


@pytest.mark.parametrize("news", [[Missing(EXPERT_2)], [Created(EXPERT_2, "b")]])
def test_a_death_while_the_supervisor_was_away_is_counted(news: list[Event]) -> None:
    state, decisions = run(known(), *[Created(key, "a", True) for key in TWICE[:-1]], *news)
    assert StartRound(8, 0) in decisions
    state, _ = run(state, *loaded(EXPERT_2, "b"))
    assert state.places[EXPERT_2].restarts == 3


def test_a_new_supervisor_goes_on_above_the_epoch_that_it_finds() -> None:
    events = [event for key in ONCE for event in loaded(key)]
    _, decisions = run(empty(), EpochSeen(7), *events)
    assert decisions[-1] == StartRound(8, 0)


def test_a_round_below_an_epoch_that_an_actor_has_seen_is_held_again() -> None:
    state, _ = run(ready(), PlacementChanged({0: (0, 1, 2), 1: (2, 3)}))
    state, decisions = run(state, EpochSeen(9))
    assert decisions == [StartRound(10, 0)]
    assert end(state).is_switched


incarnations = st.sampled_from(["a", "b", "c"])
keys = st.sampled_from(TWICE)
tables = st.sampled_from([DOUBLE_TABLE, {0: (0, 1, 2), 1: (0, 1, 2)}, {0: (0,), 1: (1,), 2: (2,)}])
events = st.one_of(
    st.builds(Created, keys, incarnations, st.booleans()),
    st.builds(Loaded, keys, incarnations),
    st.builds(LoadFailed, keys, incarnations, st.just("x")),
    st.builds(Died, keys, incarnations),
    st.builds(Silent, keys, incarnations),
    st.builds(Heard, keys, incarnations),
    st.builds(Missing, keys),
    st.builds(Added, keys),
    st.builds(Removed, keys),
    st.builds(PlacementChanged, tables),
    st.builds(Unlinked, keys, incarnations, st.integers(0, 8)),
    st.builds(RoundEnded, st.integers(0, 8), st.frozensets(keys)),
    st.builds(Steady, st.integers(0, 8)),
    st.builds(EpochSeen, st.integers(0, 8)),
)


@settings(max_examples=300)
@given(st.lists(events, max_size=40))
def test_epochs_only_grow_and_a_round_names_only_who_is_loaded(history: list[Event]) -> None:
    state, begun = double(), [0]
    gone: set[tuple[ActorKey, str]] = set()
    for event in history:
        before = state
        state, decisions = advance(state, event)
        assert state.epoch >= before.epoch
        for key, place in before.places.items():
            now = state.places.get(key)
            if place.incarnation is not None and (now is None or now.incarnation != place.incarnation):
                gone.add((key, place.incarnation))
            if now is not None and key in before.places:
                assert now.restarts >= place.restarts
        if isinstance(event, Created):
            # Real incarnations are never used twice; here they may be.
            gone.discard((event.key, event.incarnation))
        for decision in decisions:
            if isinstance(decision, StartRound):
                assert decision.epoch > max(begun)
                begun.append(decision.epoch)
                assert state.is_round_open and state.is_covered
                assert any(key.kind == "dense" for key in state.called)
                assert all(state.places[key].is_up for key in state.called)
                assert not gone & {(key, str(incarnation)) for key, incarnation in state.called.items()}


@given(st.lists(events, max_size=30))
def test_after_any_history_the_service_becomes_ready_and_comes_to_rest(history: list[Event]) -> None:
    state, _ = run(double(), *history)
    rebirth: list[Event] = [Added(key) for key in TWICE]
    rebirth += [event for key in TWICE for event in (Created(key, "z"), Loaded(key, "z"))]
    state, _ = run(state, *rebirth)
    state, decisions = run(state, RoundEnded(state.epoch, frozenset(state.called)))
    assert state.is_ready and state.is_switched and decisions == []


@given(st.lists(events, max_size=30))
def test_no_round_is_missed(history: list[Event]) -> None:
    """Assert that, while no round is open, all members have been called with the table in force."""
    state, _ = run(double(), *history)
    is_possible = (
        state.is_covered
        and state.epoch > 0
        and any(key.kind == "dense" for key in state.members)
        and all(place.phase != "unseen" for place in state.places.values())
    )
    if is_possible:
        assert dict(state.called) == state.members and dict(state.called_table) == dict(state.table)
