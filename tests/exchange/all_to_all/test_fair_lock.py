from __future__ import annotations

import threading
import time

from actors.exchange.all_to_all.fair_lock import FairLock


def test_turns_are_taken_in_the_order_of_asking() -> None:
    lock, order = FairLock(), list[int]()

    def take(number: int) -> None:
        with lock:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            while len(lock._waiting) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_only_one_holds_it_at_a_time() -> None:
    lock, holders, most = FairLock(), list[int](), list[int]()

    def take() -> None:
        for _ in range(50):
            with lock:
                holders.append(1)
                time.sleep(0)
                most.append(len(holders))
                holders.pop()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 200 and max(most) == 1
