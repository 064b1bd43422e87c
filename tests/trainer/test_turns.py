"""The base is handed over between two steps, and the run is the same as one that had it for itself."""
import threading
from contextlib import contextmanager

import pytest
import torch

from hotlora.trainer.backend import BaseChanged
from hotlora.trainer.session import Listener
from hotlora.trainer.state import find_states
from hotlora.trainer.turns import Turn


def weights_of(session):
    return {name: p.detach().clone() for name, p in session.adapter.named_parameters()}


class Shared:
    """A backend for which somebody waits after every `every`-th look; counts how often it was borrowed and who holds it."""

    def __init__(self, backend, every=1, gone_after=None):
        self.backend, self.every, self.gone_after, self.looks, self.borrowed, self.held = backend, every, gone_after, 0, 0, False

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def wanted(self):
        self.looks += 1
        return self.looks % self.every == 0

    @contextmanager
    def borrow(self):
        assert not self.held, "borrowed twice"
        if self.borrowed == self.gone_after:
            raise BaseChanged("another checkpoint is loaded now; load the first again")
        self.borrowed += 1
        with self.backend.borrow():
            self.held = True
            try:
                yield
            finally:
                self.held = False


class At(Listener):
    """Calls something after a step."""

    def __init__(self, step, action):
        self.step, self.action, self.saved_at, self.drawn_at, self.pauses, self.ends = step, action, [], [], [], []

    def stepped(self, session, report):
        if report.step == self.step:
            self.action(session)

    def saved(self, session, lora):
        self.saved_at.append((session.step, lora.stem))

    def drew(self, session, step, prompts, pictures):
        self.drawn_at.append(step)

    def paused(self, session, is_paused):
        self.pauses.append((session.step, is_paused))

    def ended(self, session, outcome):
        self.ends.append(outcome)


def shared(session_of, config, backend, listeners=None, **how):
    """A session whose base is wanted by others; `config` as `session_of` takes it."""
    from hotlora.trainer.run import make_session, read_material

    taken = Shared(backend, **how)
    return make_session(read_material(config), taken, listeners), taken


def test_a_run_that_gives_way_after_each_step_is_bit_identical(session_of, config, backend, tmp_path):
    from dataclasses import replace

    alone = session_of(config, output_dir=str(tmp_path / "alone"))
    alone.train()
    session, taken = shared(session_of, replace(config, output_dir=str(tmp_path / "shared")), backend)
    before = taken.borrowed
    assert before > 1, "encoding gives way between pictures, too"
    session.train()
    assert taken.borrowed - before == session.total_steps + 1 and not taken.held
    first, second = weights_of(alone), weights_of(session)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert not [m for m in backend.components()["unet"].modules() if "forward" in m.__dict__]


def test_another_base_ends_the_run_as_a_stopped_one_that_can_go_on(session_of, config, backend, tmp_path):
    from dataclasses import replace

    watch = At(0, None)
    session, taken = shared(session_of, replace(config, output_dir=str(tmp_path / "gone")), backend, [watch])
    taken.gone_after = taken.borrowed + 2
    outcome = session.train()
    assert outcome.status == "stopped" and outcome.step == 2 and "another checkpoint" in outcome.message
    assert outcome.lora.is_file() and find_states(session.folder, session.name) and watch.ends == [outcome]


def test_a_paused_run_leaves_the_base_and_obeys(session_of, config, backend):
    looked = threading.Event()
    facts = {}

    def from_another_thread(session):
        session.pause()

        def act():
            until(lambda: watch.pauses)
            until(lambda: not taken.held)
            facts["held while paused"] = taken.held
            session.ask_save()
            session.ask_preview()
            until(lambda: watch.saved_at and watch.drawn_at)
            facts["step while paused"] = session.step
            session.unpause()
            looked.set()

        threading.Thread(target=act, daemon=True).start()

    watch = At(2, from_another_thread)
    session, taken = shared(session_of, config, backend, [watch], every=10**9)
    outcome = session.train()
    assert looked.is_set() and outcome.status == "completed"
    assert facts == {"held while paused": False, "step while paused": 2}
    assert watch.pauses == [(2, True), (2, False)]
    assert watch.saved_at[0] == (2, "mascot-000002") and watch.drawn_at == [2]


def test_a_paused_run_can_be_stopped(session_of, config, backend):
    def act(session):
        session.pause()
        threading.Thread(target=lambda: (until(lambda: watch.pauses), session.stop()), daemon=True).start()

    watch = At(1, act)
    session, _ = shared(session_of, config, backend, [watch])
    assert session.train().status == "stopped" and session.step == 1


def test_commands_take_effect_after_the_step(session_of, config):
    watch = At(2, lambda session: (session.ask_save(), session.ask_preview()))
    session_of(config, [watch]).train()
    assert watch.saved_at == [(2, "mascot-000002"), (4, "mascot")] and watch.drawn_at == [2]


def test_a_state_is_kept_against_crashes_even_when_nothing_is_saved(session_of, config):
    kept = []

    class Looking(Listener):
        def stepped(self, session, report):
            kept.append([path.name for path in find_states(session.folder, session.name)])

    session_of(config, [Looking()], state_minutes=1e-9).train()
    assert kept[1] == ["mascot-000001.state"] and kept[-1]


def test_no_state_is_written_on_the_way_when_that_is_switched_off(session_of, config):
    class Looking(Listener):
        def stepped(self, session, report):
            assert not find_states(session.folder, session.name)

    session_of(config, [Looking()], state_minutes=0).train()


def test_a_turn_that_cannot_be_taken_again_is_not_held(backend):
    taken = Shared(backend, gone_after=1)
    with pytest.raises(BaseChanged):
        with Turn(taken, taken.borrow) as turn:
            turn.give_way()
    assert not taken.held


def until(condition, seconds: float = 60) -> None:
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)
