"""Membership: whatever happens in whatever order, epochs only grow and rounds are complete."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.membership import (
    ActorKey,
    Created,
    Decision,
    Died,
    EpochSeen,
    Event,
    Loaded,
    LoadFailed,
    Membership,
    RoundEnded,
    StartLoading,
    StartRound,
    Unlinked,
    advance,
    first,
)

DENSE, EXPERT_0, EXPERT_1 = ActorKey("dense", 0), ActorKey("expert", 0), ActorKey("expert", 1)
KEYS = (DENSE, EXPERT_0, EXPERT_1)


def run(state: Membership, *events: Event) -> tuple[Membership, list[Decision]]:
    decisions: list[Decision] = []
    for event in events:
        state, new = advance(state, event)
        decisions += new
    return state, decisions


def loaded(key: ActorKey, incarnation: str = "a") -> tuple[Event, Event]:
    return Created(key, incarnation), Loaded(key, incarnation)


def ready() -> Membership:
    events = [event for key in KEYS for event in loaded(key)]
    state, _ = run(first(KEYS), *events, RoundEnded(1, frozenset(KEYS)))
    assert state.is_ready
    return state


def test_actors_load_as_they_appear_and_meet_once_all_are_loaded() -> None:
    state, decisions = run(first(KEYS), *loaded(DENSE), *loaded(EXPERT_0))
    assert decisions == [StartLoading(DENSE), StartLoading(EXPERT_0)]
    state, decisions = run(state, *loaded(EXPERT_1))
    assert decisions == [StartLoading(EXPERT_1), StartRound(1)]
    assert not state.is_ready
    state, _ = run(state, RoundEnded(1, frozenset(KEYS)))
    assert state.is_ready


def test_a_restarted_actor_leads_to_the_next_epoch_for_everybody() -> None:
    state, decisions = run(ready(), Died(EXPERT_0, "a"))
    assert decisions == [] and not state.is_ready
    assert state.places[EXPERT_0].restarts == 1
    state, decisions = run(state, *loaded(EXPERT_0, "b"))
    assert decisions == [StartLoading(EXPERT_0), StartRound(2)]
    state, _ = run(state, RoundEnded(2, frozenset(KEYS)))
    assert state.is_ready and state.epoch == 2


def test_a_failed_round_is_repeated_under_a_new_epoch() -> None:
    state, _ = run(ready(), Died(EXPERT_0, "a"), *loaded(EXPERT_0, "b"))
    state, decisions = run(state, RoundEnded(2, frozenset({DENSE})))
    assert decisions == [StartRound(3)] and not state.is_ready


def test_a_death_during_a_round_ends_it_at_once() -> None:
    state, _ = run(ready(), Died(EXPERT_0, "a"), *loaded(EXPERT_0, "b"))
    state, decisions = run(state, Died(DENSE, "a"), *loaded(DENSE, "b"))
    assert decisions == [StartLoading(DENSE), StartRound(3)]
    state, decisions = run(state, RoundEnded(2, frozenset(KEYS)))
    assert decisions == [] and not state.is_ready


def test_news_of_a_process_that_is_gone_change_nothing() -> None:
    state = ready()
    for event in (
        Died(DENSE, "old"),
        Loaded(DENSE, "old"),
        LoadFailed(DENSE, "old", "x"),
        RoundEnded(0, frozenset()),
    ):
        assert advance(state, event) == (state, ())


def test_a_process_that_died_unseen_counts_as_a_restart() -> None:
    state, decisions = run(ready(), Created(EXPERT_1, "b"))
    assert decisions == [StartLoading(EXPERT_1)]
    assert state.places[EXPERT_1].restarts == 1 and not state.is_ready


def test_an_actor_whose_links_break_leads_to_a_new_round() -> None:
    state, decisions = run(ready(), Unlinked(DENSE, "a", 1))
    assert decisions == [StartRound(2)] and not state.is_ready


def test_broken_links_of_an_older_epoch_are_no_news() -> None:
    state, decisions = run(ready(), Unlinked(DENSE, "a", 0))
    assert decisions == [] and state.is_ready


def test_an_actor_that_cannot_load_stays_failed_and_no_round_begins() -> None:
    events = [*loaded(DENSE), *loaded(EXPERT_0), Created(EXPERT_1, "a"), LoadFailed(EXPERT_1, "a", "no file")]
    state, decisions = run(first(KEYS), *events)
    assert state.places[EXPERT_1].error == "no file"
    assert StartRound(1) not in decisions


def test_a_new_supervisor_goes_on_above_the_epoch_that_it_finds() -> None:
    events = [event for key in KEYS for event in loaded(key)]
    _, decisions = run(first(KEYS), EpochSeen(7), *events)
    assert decisions[-1] == StartRound(8)


incarnations = st.sampled_from(["a", "b", "c"])
keys = st.sampled_from(KEYS)
events = st.one_of(
    st.builds(Created, keys, incarnations),
    st.builds(Loaded, keys, incarnations),
    st.builds(LoadFailed, keys, incarnations, st.just("x")),
    st.builds(Died, keys, incarnations),
    st.builds(Unlinked, keys, incarnations, st.integers(0, 8)),
    st.builds(RoundEnded, st.integers(0, 8), st.frozensets(keys)),
    st.builds(EpochSeen, st.integers(0, 8)),
)


@settings(max_examples=300)
@given(st.lists(events, max_size=40))
def test_epochs_only_grow_and_a_round_begins_only_when_all_are_loaded(history: list[Event]) -> None:
    state, begun = first(KEYS), [0]
    for event in history:
        before = state
        state, decisions = advance(state, event)
        assert state.epoch >= before.epoch
        for decision in decisions:
            if isinstance(decision, StartRound):
                assert decision.epoch > max(begun)
                begun.append(decision.epoch)
                assert all(place.phase in ("loaded", "joined") for place in state.places.values())
                assert state.is_round_open
        if state.is_ready and not before.is_ready:
            assert isinstance(event, RoundEnded) and event.joined == frozenset(KEYS)


@given(st.lists(events, max_size=30))
def test_after_any_history_the_service_can_become_ready(history: list[Event]) -> None:
    state, _ = run(first(KEYS), *history)
    rebirth = [event for key in KEYS for event in (Created(key, "z"), Loaded(key, "z"))]
    state, _ = run(state, *rebirth)
    state, _ = run(state, RoundEnded(state.epoch, frozenset(KEYS)))
    assert state.is_ready
