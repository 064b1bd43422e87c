"""Memory that has spilled: a clock and a machine's memory of our own, through the real session."""
import torch

from hotlora.trainer import device_memory, session as session_module
from hotlora.trainer.session import Listener
from hotlora.trainer.spilling import Spilling

CPU = torch.device("cpu")


class Clock:
    """Each step takes as long as `lengths` says for its number (from 1), else a second."""

    def __init__(self, lengths):
        self.lengths, self.now, self.step, self.inside = lengths, 0.0, 0, False

    def perf_counter(self):
        # a session asks at the beginning and at the end of a step
        self.inside = not self.inside
        if not self.inside:
            self.step += 1
            self.now += self.lengths.get(self.step, 1.0)
        return self.now


class Watch(Listener):
    def __init__(self):
        self.rungs, self.steps = [], []

    def stepped(self, session, report):
        self.steps.append((report.step, report.seconds))

    def lightened(self, session, rung):
        self.rungs.append((session.step, rung))


def run(session_of, config, monkeypatch, lengths, free, **changes):
    watch = Watch()
    session = session_of(config, [watch], steps=12, lora_rank=2, unet_target_modules=["to_q"], **changes)
    clock = Clock(lengths)
    monkeypatch.setattr(session_module.time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(device_memory, "_linux_free", lambda: free * device_memory.memory_of(CPU))
    monkeypatch.setattr("hotlora.trainer.footprint.free_of", lambda device: None)
    try:
        assert session.train().status == "completed"
    finally:
        monkeypatch.undo()
    assert [step for step, _ in watch.steps] == list(range(1, 13))
    return watch, session


def test_a_step_that_takes_three_times_as_long_with_the_memory_full_is_answered(session_of, config, monkeypatch, caplog):
    watch, session = run(session_of, config, monkeypatch, {7: 3.5}, 0.01)
    [(step, told)] = watch.rungs
    assert step == 7 and told.startswith("step 7 took 3.5 s, 1.0 are usual, and the memory is full") and told.endswith("1.5 times as long")
    assert session.plan.checkpointing and session.plan.batch_size == 2 and told in caplog.text


def test_it_goes_on_down_the_ladder_until_steps_are_fast_again(session_of, config, monkeypatch):
    watch, session = run(session_of, config, monkeypatch, {5: 10.0, 6: 10.0, 7: 1.8, 8: 1.8}, 0.01)
    assert [step for step, _ in watch.rungs] == [5, 6]
    assert session.plan.checkpointing and session.plan.batch_size == 1 and not session.plan.packs_moments


def test_when_nothing_is_left_the_run_goes_on_and_says_what_would_help(session_of, config, monkeypatch):
    watch, _ = run(session_of, config, monkeypatch, {step: 10.0 ** (step - 3) for step in range(5, 13)}, 0.01)
    assert "nothing left to give up" in watch.rungs[-1][1] and "Set resolution lower than" in watch.rungs[-1][1]


def test_a_slow_step_with_memory_to_spare_is_no_sign(session_of, config, monkeypatch):
    assert run(session_of, config, monkeypatch, {7: 50.0}, 0.5)[0].rungs == []


def test_what_is_usual_needs_some_steps_and_follows_slowly(monkeypatch):
    monkeypatch.setattr("hotlora.trainer.spilling.stands_at_its_limit", lambda device: True)
    spilling = Spilling(CPU)
    assert [spilling.noticed(seconds) for seconds in (50.0, 1.0, 1.0, 1.0, 2.9, 1.0, 3.1)] == [None] * 6 + [1.0]
    # a rung makes steps longer, which is no new sign
    assert [spilling.noticed(seconds) for seconds in (4.4, 1.5, 1.5)] == [None] * 3
    assert spilling.noticed(5.0) == 1.5


def test_where_the_limit_is_not_known_nothing_is_noticed(monkeypatch):
    monkeypatch.setattr(device_memory, "_linux_free", lambda: None)
    assert not device_memory.stands_at_its_limit(CPU)
