"""An expert actor as the supervisor sees it; tests/exchange has the tests of how it serves."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from actors.errors import LinkError, StaleEpochError
from actors.exchange.rendezvous import host_store
from actors.expert.actor import ExpertActor
from actors.protocol.messages import DenseMember, ExpertMember, Membership, Progress
from actors.protocol.settings import ExchangeSettings, ExpertSettings, ModelSource


def make_actor(
    model: str = "tiny", connect_deadline_seconds: float = 60, expert_quantization: str | None = None
) -> ExpertActor:
    return ExpertActor(
        ExpertSettings(
            index=2,
            experts=(4, 5),
            source=ModelSource(model=model, load_format="dummy"),
            exchange=ExchangeSettings(connect_deadline_seconds=connect_deadline_seconds),
            expert_quantization=expert_quantization,
        )
    )


def loaded(actor: ExpertActor) -> ExpertActor:
    actor.start_loading()
    assert wait_until_settled(actor).state == "loaded"
    return actor


def wait_until_settled(actor: ExpertActor) -> Progress:
    deadline = time.monotonic() + 30
    while (progress := actor.progress()).state not in ("loaded", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return progress


def membership(epoch: int, port: int = 1) -> Membership:
    return Membership(
        epoch=epoch,
        dense=(DenseMember(index=0, store_host="127.0.0.1", store_port=port),),
        experts=(ExpertMember(index=2, experts=(4, 5)),),
    )


def test_an_actor_loads_in_the_background_and_reports() -> None:
    actor = make_actor()
    assert actor.progress().state == "starting"
    loaded(actor)
    actor.start_loading()
    progress, report = actor.progress(), actor.report()
    assert progress.state == "loaded" and progress.bytes_done == progress.bytes_total > 0
    assert report.experts == (4, 5)
    assert report.state == "starting" and report.memory_bytes > 1_000_000
    assert report.rows_of_experts == {4: 0, 5: 0}


def test_a_model_that_cannot_be_loaded_is_reported_with_the_reason() -> None:
    actor = make_actor(model="./no-such-directory")
    actor.start_loading()
    progress = wait_until_settled(actor)
    assert progress.state == "failed"
    assert progress.error is not None and "no-such-directory" in progress.error


def test_joining_before_the_weights_are_there_is_refused() -> None:
    with pytest.raises(LinkError, match="not loaded"):
        make_actor().join(membership(1))


def test_a_membership_without_the_actor_is_refused() -> None:
    actor = loaded(make_actor())
    for member in (
        ExpertMember(index=2, experts=(4, 6)),
        ExpertMember(index=3, experts=(4, 5)),
        ExpertMember(index=2, experts=(4, 5), incarnation="somebody else's"),
    ):
        with pytest.raises(ValueError, match="no expert actor 2"):
            actor.join(Membership(epoch=1, dense=(), experts=(member,)))


def test_an_actor_can_be_told_at_its_start_what_to_hold() -> None:
    actor = make_actor()
    actor.start_loading((7, 9))
    assert wait_until_settled(actor).state == "loaded"
    assert actor.report().experts == (7, 9)


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_experts_can_be_held_and_dropped_later(quantization: str | None) -> None:
    actor = loaded(make_actor(expert_quantization=quantization))
    assert actor.report().products.endswith(f" {quantization}") == (quantization is not None)
    bytes_of_two = actor.progress().bytes_total
    with pytest.raises(ValueError, match=r"experts names \[16\]"):
        actor.hold((16,))
    with pytest.raises(ValueError, match="expected to leave one"):
        actor.drop((4, 5))
    actor.hold((9, 4))
    progress = wait_until_settled(actor)
    assert progress.state == "loaded" and 2 * progress.bytes_done == bytes_of_two
    assert actor.report().experts == (4, 5, 9)
    actor.drop((4,))
    assert actor.report().experts == (5, 9)
    actor.hold((4,))
    assert wait_until_settled(actor).state == "loaded"
    assert actor.report().experts == (4, 5, 9)


def test_two_actors_have_two_incarnations() -> None:
    assert make_actor().incarnation != make_actor().incarnation


def test_a_newer_membership_waits_for_no_dense_actor_that_vanished_while_it_was_reached() -> None:
    """The dense actor accepts the connection and says nothing, as if it was killed then.

    torch's store tries for a minute in that case.
    """
    actor = loaded(make_actor())
    caught: list[BaseException] = []

    def join(epoch: int, port: int) -> None:
        try:
            actor.join(membership(epoch, port))
        except Exception as error:
            caught.append(error)

    with socket.create_server(("127.0.0.1", 0)) as mute:
        threads = [
            threading.Thread(target=join, args=(epoch, mute.getsockname()[1]), daemon=True)
            for epoch in (1, 2)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.5)
        threads[0].join(2)
        assert not threads[0].is_alive() and isinstance(caught[0], LinkError)
        began = time.monotonic()
        actor.stop()
        threads[1].join(2)
        assert not threads[1].is_alive() and time.monotonic() - began < 2


def test_a_newer_membership_ends_the_wait_of_an_older_one() -> None:
    actor = loaded(make_actor(connect_deadline_seconds=20))
    store, _, port = host_store("127.0.0.1")
    caught: list[BaseException] = []

    def join(epoch: int) -> None:
        try:
            actor.join(membership(epoch, port))
        except Exception as error:
            caught.append(error)

    older = threading.Thread(target=join, args=(1,))
    older.start()
    time.sleep(0.2)
    assert older.is_alive()
    newer = threading.Thread(target=join, args=(2,))
    newer.start()
    older.join(5)
    assert not older.is_alive() and isinstance(caught[0], LinkError)
    with pytest.raises(StaleEpochError):
        actor.join(membership(1, port))
    actor.stop()
    newer.join(5)
    assert not newer.is_alive() and len(caught) == 2
    with pytest.raises(LinkError, match="stopped"):
        actor.join(membership(3, port))
    del store
