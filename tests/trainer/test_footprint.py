"""What is said before a run is what the run comes to, costs it nothing of its result, and leads to rungs where it would not fit."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hotlora.trainer import footprint as footprint_module
from hotlora.trainer.estimate import measure_ahead
from hotlora.trainer.footprint import Footprint, _LiveBytes, _can_watch_storages, measure, state_bytes
from hotlora.trainer.session import Listener

CPU = torch.device("cpu")
exact = pytest.mark.skipif(not _can_watch_storages(), reason="this torch cannot watch storages, and on a CPU what a step keeps is all that is counted")


class Watch(Listener):
    def __init__(self):
        self.footprint, self.rungs = None, []

    def planned(self, session, footprint):
        self.footprint = footprint

    def lightened(self, session, rung):
        self.rungs.append(rung)


@pytest.fixture
def light(config):
    return replace(config, steps=3, batch_size=2, lora_rank=16, unet_target_modules=["to_q", "to_v"], ema_decay=0.9)


def measured(session):
    with session._borrowed():
        return measure(session, session.dataset.condition)


@exact
@pytest.mark.parametrize("changes", [
    {}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 3}, {"preservation_weight": 1.0, "trigger": "sks", "class_word": "toy"},
    {"optimizer": "torch.optim.SGD"}, {"lora_rank": 64, "unet_target_modules": None}], ids=lambda changes: ", ".join(changes) or "plain")
def test_a_step_holds_what_was_said(session_of, light, changes):
    """Counted by the storages that are alive, with weights of the adapter and caches not among them."""
    session = session_of(light, **changes)
    said = measured(session)
    with session._borrowed():
        with _LiveBytes(CPU) as live:
            session.train_step()
        kept = live.now
        with _LiveBytes(CPU) as live:
            session.train_step()
    # the first step leaves the optimizer's state, which the second finds there
    assert said.optimizer + live.peak == pytest.approx(said.training, rel=0.1), (said, live.peak)
    assert kept == pytest.approx(said.optimizer, rel=0.1, abs=1e5)


def test_state_is_what_the_optimizer_keeps(session_of, light):
    session = session_of(light)
    state, moments = state_bytes(session)
    with session._borrowed():
        session.train_step()
    kept = [(name, x.numel() * x.element_size()) for entry in session.optimizer.state.values() for name, x in entry.items()]
    assert state == sum(size for _, size in kept) and moments == sum(size for name, size in kept if name != "step")


@pytest.mark.parametrize("changes", [{}, {"lora_dropout": 0.2}, {"preview_steps": 2}, {"mixed_precision": "bf16"}])
def test_a_plan_changes_nothing_of_the_result(session_of, light, tmp_path, changes, monkeypatch):
    found = []
    for name in ("planned", "not planned"):
        watch = Watch()
        session = session_of(light, [watch], output_dir=str(tmp_path / name), **changes)
        if name != "planned":
            monkeypatch.setattr(session, "_plan", lambda: None)
        state = torch.random.get_rng_state()
        assert session.train().status == "completed"
        assert (watch.footprint is not None) == (name == "planned")
        found.append(([p.detach().clone() for p in session.parameters], torch.equal(torch.random.get_rng_state(), state), session.adapter.training))
    (planned, same, _), (plain, same_without, _) = found
    assert all(torch.equal(a, b) for a, b in zip(planned, plain)) and same == same_without
    assert not any(p.grad is not None for p in session.parameters)


@exact
def test_rungs_are_taken_before_the_first_step_until_it_fits(session_of, light, monkeypatch, caplog):
    whole = measured(session_of(light))
    checkpointed = measured(session_of(light, gradient_checkpointing=True))
    single = measured(session_of(light, gradient_checkpointing=True, batch_size=1, gradient_accumulation_steps=2))
    assert single.training < checkpointed.training < whole.training
    for free, rungs in ((1.2 * whole.training, 0), (1.06 * checkpointed.training, 1), (1.06 * single.training, 2)):
        watch = Watch()
        monkeypatch.setattr(footprint_module, "free_of", lambda device: int(free))
        session = session_of(light, [watch])
        assert session.train().status == "completed"
        assert len(watch.rungs) == rungs and watch.footprint.fits, free
        assert all("are free" in rung and rung in caplog.text for rung in watch.rungs)
    assert session.plan.checkpointing and session.plan.batch_size == 1


def test_what_will_hardly_fit_is_tried_all_the_same(session_of, light, monkeypatch):
    watch = Watch()
    monkeypatch.setattr(footprint_module, "free_of", lambda device: 1000)
    session = session_of(light, [watch])
    assert session.train().status == "completed"
    assert len(watch.rungs) == 3 and session.plan.packs_moments and watch.footprint.sentence().endswith("it will hardly fit")


def test_moments_in_8_bits_are_reckoned_with(session_of, light):
    session = session_of(light)
    whole = measured(session)
    session.plan.packs_moments = True
    packed = measured(session)
    assert packed.optimizer < 0.3 * whole.optimizer and packed.training < whole.training
    with session._borrowed():
        session.train_step()
    assert session.moments.bytes() == pytest.approx(packed.optimizer, rel=0.1)
    again = measured(session)  # of a run that goes on, what it keeps is there already
    assert again.optimizer < 0.1 * packed.optimizer and again.step == pytest.approx(packed.step, rel=0.02)


def test_before_anything_is_prepared_the_same_is_said(session_of, light):
    """As --dry-run does it."""
    told = []
    session = session_of(light)
    ahead, of_step, of_preview = measure_ahead(session_of(light, output_dir=light.output_dir + "2"), told.append)
    there = measured(session)
    assert not told and 0 < of_step < 60 and of_preview == 0
    *_, of_preview = measure_ahead(session_of(light, output_dir=light.output_dir + "3", preview_steps=4), told.append)
    assert of_preview > of_step, "25 times a forward"
    assert ahead.training == pytest.approx(there.training, rel=0.05) and (ahead.encoding > 0 or not _can_watch_storages())


@pytest.mark.parametrize("free, verdict", [
    (None, None), (10e9, "it fits"), (2.5e9, "the steps fit, the previews may not"), (1e9, "it will hardly fit")])
def test_one_sentence_with_the_numbers(free, verdict):
    footprint = Footprint(held=2_000_000_000, base=1_500_000_000, adapter=100_000_000, optimizer=200_000_000, gradients=100_000_000, copies=300_000_000,
                          step=1_800_000_000, batch=2, accumulates=False, previews=2_900_000_000, encoding=500_000_000, free=free)
    told = footprint.sentence()
    assert "\n" not in told and told.startswith("memory: 5.10 GB at the peak (1.50 the base, which is there anyway, 0.40 LoRA and optimizer, 1.80 a step's 2 pictures")
    assert (told.endswith(verdict) and f"{free / 1e9:.2f} are free" in told) if verdict else "free" not in told
