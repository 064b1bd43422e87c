"""Who is said to be lost when the store at which the processes met is silent or gone, and which part of a message is told."""
import time

import pytest
import torch

from hotlora.trainer import roll_call
from hotlora.trainer.roll_call import Failure, RollCall, brief

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no process groups")
PEOPLE = [("one", 10), ("one", 11), ("two", 10), ("two", 11)]


class Alive:
    def is_alive(self) -> bool:
        return True


def call_of(rank: int) -> RollCall:
    """A roll call without a store."""
    call = RollCall.__new__(RollCall)
    call.rank, call.world, call.people, call.failure = rank, len(PEOPLE), PEOPLE, None
    call._reached, call._doubted, call._thread = time.monotonic(), None, Alive()
    return call


@pytest.mark.parametrize("rank, speaker", [(0, 1), (1, 1), (2, 2), (3, 2)])
def test_on_each_machine_one_says_that_the_first_process_is_gone(rank, speaker):
    failure = call_of(rank)._without_store(RuntimeError("[/x/y.cc:553] Connection closed by peer [10.0.0.1]:3. This is typically caused by a crash"))
    assert failure.speaker == speaker and failure.lost and failure.rank == 0
    assert failure.message == "process 0 of 4 (pid 10 on one), or what launched it, was lost (Connection closed by peer [10.0.0.1]:3)"


def test_a_silent_store_is_given_up_after_a_while_and_not_because_the_watch_was_late(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(roll_call.time, "monotonic", lambda: now[0])
    call = call_of(2)
    now[0] += roll_call.SILENCE + 100
    call.look_for_store()
    assert call.failure is None, "it may only be that this process was held up"
    call._reached = now[0]
    now[0] += 1
    call.look_for_store()
    assert call.failure is None
    now[0] += roll_call.SILENCE
    call.look_for_store()
    now[0] += 3 * roll_call.ANSWER + 1
    call.look_for_store()
    assert isinstance(call.failure, Failure) and "nothing was heard of it for 71 s" in call.failure.message


@pytest.mark.parametrize("text, expected", [("Read error [127.0.0.1]:6356: Connection reset by peer", "Read error [127.0.0.1]:6356: Connection reset by peer"),
                                            ("", "RuntimeError"), ("first\nsecond", "first")])
def test_what_is_told_of_a_message(text, expected):
    assert brief(RuntimeError(text)) == expected
