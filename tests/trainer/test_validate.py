"""Held-out loss, prior drift, the best step and the early end, on the embedded base."""
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hotlora.trainer import validate
from hotlora.trainer.demo import drawings
from hotlora.trainer.gallery import read_gallery
from hotlora.trainer.listeners import TensorBoard
from hotlora.trainer.lora_file import load_lora
from hotlora.trainer.session import Listener
from hotlora.trainer.validate import COST, DRIFTS, STRATA, Measurement, Progress, Validation, choose_held_out


class Watch(Listener):
    def __init__(self):
        self.measurements, self.weights, self.saved_as = [], {}, []

    def validated(self, session, measurement):
        self.measurements.append(measurement)
        self.weights[measurement.step] = {key: x.clone() for key, x in session.adapter.state_dict().items()}

    def saved(self, session, lora):
        self.saved_as.append(lora.stem)


@pytest.fixture
def large_gallery(tmp_path):
    """Fourteen pictures, no two of which are alike."""
    folder = tmp_path / "fourteen"
    folder.mkdir()
    rng = random.Random(3)
    for i in range(14):
        drawings.draw_mascot(rng, list(drawings.BACKGROUNDS)[i % len(drawings.BACKGROUNDS)]).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a photo of sks, number {i}")
    return folder


@pytest.fixture
def validated(config, large_gallery):
    return replace(config, train_data_dir=str(large_gallery), validation=True, steps=8)


def every(monkeypatch, steps):
    monkeypatch.setattr(Validation, "interval", lambda self, total_steps: steps)


def test_below_twelve_pictures_none_is_held_back_and_above_a_tenth(gallery, large_gallery, tmp_path):
    assert choose_held_out(read_gallery(str(gallery)), None, 0) == []
    found = read_gallery(str(large_gallery))
    chosen = {seed: [e.path.name for e in choose_held_out(found, tmp_path / "looks.npz", seed)] for seed in (0, 1, 2, 3)}
    assert all(len(set(names)) == 2 for names in chosen.values()) and len(set(map(tuple, chosen.values()))) > 1
    assert chosen[1] == [e.path.name for e in choose_held_out(found, None, 1)]


def test_a_picture_with_a_near_copy_is_never_held_back(large_gallery):
    copied = [f"{i:02d}.png" for i in range(10)]
    for name in copied:
        with Image.open(large_gallery / name) as picture:
            picture.resize((picture.width * 2, picture.height * 2), Image.LANCZOS).save(large_gallery / f"copy of {name[:2]}.jpg", quality=92)
    alone = {"10.png", "11.png", "12.png", "13.png"}
    for seed in range(5):
        assert {e.path.name for e in choose_held_out(read_gallery(str(large_gallery)), None, seed)} <= alone


def test_no_step_shows_what_is_held_back(session_of, validated):
    session = session_of(validated)
    dataset = session.dataset
    held_out = {e.path for e in dataset.held_out}
    assert len(held_out) == 2 and len(dataset.examples) == 12
    shown = {dataset.examples[i].path for step in range(2 * dataset.order.steps_per_epoch) for i in dataset.order.of_step(step)}
    assert len(shown) == 12 and not shown & held_out


def test_nothing_learned_is_nothing_measured(session_of, validated, backend):
    session = session_of(validated)
    with backend.borrow(), session.adapter.attached(backend.components()):
        first = session.validation.measure(session.adapter, 0)
        session.train_step()
        second = session.validation.measure(session.adapter, 1)
        assert session.adapter.training
    assert (first.held_out, first.drift) == (0.0, 0.0)
    assert second.held_out != 0 and second.drift > 0


def test_what_masks_leave_nothing_of_is_held_out_in_vain(session_of, validated, backend):
    for example in session_of(validated).dataset.held_out:
        Image.new("L", (example.width, example.height), 0).save(example.path.with_name(f"{example.path.stem}_mask.png"))
    session = session_of(validated, masks=True)
    assert all(example.mask_path for example in session.dataset.held_out)
    with backend.borrow(), session.adapter.attached(backend.components()):
        assert session.validation.measure(session.adapter, 0).held_out is None


def test_held_out_loss_is_the_loss_of_the_objective_above_the_base_s(session_of, validated, backend):
    """Computed once more by hand for one picture, from the cached latents."""
    session = session_of(validated)
    for layer in session.adapter.layers.values():
        torch.nn.init.normal_(layer.up, std=0.02, generator=torch.Generator().manual_seed(0))
    validation, objective = session.validation, session.objective
    with backend.borrow(), session.adapter.attached(backend.components()):
        measured = validation.measure(session.adapter, 0)
        losses = {0.0: 0.0, 1.0: 0.0}
        for multiplier in losses:
            session.adapter.set_multiplier(1.0, multiplier)
            for number, example in enumerate(session.dataset.held_out):
                stored = session.dataset.latents.load(example)
                z0_1CHW, cond = stored["z_VCHW"][:1], backend.encode_text([example.caption])
                for k in range(STRATA):
                    t_1, noise_1CHW = validation._timestep(k, STRATA, number), validation._noise(z0_1CHW.shape[1:], number, k)
                    assert k / STRATA <= t_1.item() / 1000 < (k + 1) / STRATA
                    with torch.no_grad():
                        out = backend.predict(objective.noisy(z0_1CHW, noise_1CHW, t_1), t_1, cond, stored["size_V6"][:1])
                    losses[multiplier] += objective.loss(out.float(), objective.target(z0_1CHW, noise_1CHW, t_1), t_1).item()
    assert measured.held_out == pytest.approx((losses[1.0] - losses[0.0]) / losses[0.0], rel=1e-4) and abs(measured.held_out) > 1e-3


def test_measuring_does_not_change_the_run(session_of, validated, tmp_path, monkeypatch):
    runs = []
    for interval in (2, 100):
        every(monkeypatch, interval)
        session = session_of(validated, output_dir=str(tmp_path / str(interval)), lora_dropout=0.1)
        session.train()
        runs.append(session.adapter.state_dict())
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_a_stopped_and_resumed_run_measures_and_keeps_the_same(session_of, validated, tmp_path, monkeypatch):
    every(monkeypatch, 2)
    whole, stopped, resumed = Watch(), Watch(), Watch()
    stopped.stepped = lambda session, report: session.stop() if report.step == 5 else None
    session_of(validated, [whole], output_dir=str(tmp_path / "whole")).train()
    assert session_of(validated, [stopped], output_dir=str(tmp_path / "parts")).train().status == "stopped"
    session = session_of(validated, [resumed], output_dir=str(tmp_path / "parts"))
    session.resume()
    session.train()
    assert stopped.measurements + resumed.measurements == whole.measurements and len(whole.measurements) == 4
    one, other = (load_lora(tmp_path / folder / "mascot.safetensors")[0] for folder in ("whole", "parts"))
    assert all(torch.equal(one[key][name], other[key][name]) for key in one for name in ("down", "up"))


def test_the_best_step_is_the_result_and_the_end_says_why(session_of, validated, monkeypatch):
    """A learning rate that is far too high learns for a moment and then gets no better."""
    every(monkeypatch, 1)
    monkeypatch.setattr(validate, "KEPT", 1.0)
    watch = Watch()
    session = session_of(validated, [watch], steps=40, learning_rate=0.03, lr_scheduler="constant", lr_warmup_steps=3)
    outcome = session.train()
    lowest = min(watch.measurements, key=lambda m: m.held_out)
    assert outcome.status == "completed" and outcome.step < 40 and lowest.step <= session.progress.best < outcome.step
    assert f"stopped at step {outcome.step} of 40: held-out loss has lost more than a third of its gain since step {session.progress.best}, which is kept" in outcome.message
    assert watch.saved_as == ["mascot-last", "mascot"]
    for stem, step in (("mascot", session.progress.best), ("mascot-last", outcome.step)):
        weights, metadata = load_lora(outcome.lora.with_name(f"{stem}.safetensors"))
        expected = watch.weights[step]
        key = next(iter(session.adapter.layers))
        written = weights[session.backend.lora_key(*key)]
        torch.testing.assert_close(written["up"], expected[f"{'/'.join(key)}.up".replace(".", "/", key[1].count("."))])
        assert int(metadata["ss_steps"]) == step
    told = json.loads(metadata["hotlora_validation"])
    assert told["best"] == session.progress.best and len(told["measurements"]) == len(watch.measurements)


def test_early_stop_can_be_turned_off(session_of, validated, monkeypatch):
    every(monkeypatch, 1)
    monkeypatch.setattr(validate, "KEPT", 1.0)
    session = session_of(validated, steps=20, learning_rate=0.03, lr_scheduler="constant", lr_warmup_steps=3, early_stop=False)
    outcome = session.train()
    assert outcome.step == 20 and session.progress.best < 20 and outcome.lora.with_name("mascot-last.safetensors").exists()


def test_few_pictures_are_all_trained_on_and_the_drift_is_told(session_of, config):
    watch = Watch()
    session = session_of(config, [watch], validation=True)
    outcome = session.train()
    assert len(session.dataset.examples) == 6 and watch.measurements[-1].held_out is None and watch.measurements[-1].drift > 0
    assert outcome.status == "completed" and not outcome.lora.with_name("mascot-last.safetensors").exists()


@pytest.mark.parametrize("total", [200, 800, 1440, 4000])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_measuring_takes_its_share_of_the_forwards_at_most(session_of, validated, total, batch):
    session = session_of(validated, batch_size=batch)
    interval = session.validation.interval(total)
    times = total // interval + (total % interval > 0)
    forwards = times * (len(session.dataset.held_out) * STRATA + DRIFTS) + 2 * (len(session.dataset.held_out) * STRATA + DRIFTS)
    assert times >= 1 and (forwards <= COST * total * (batch + 1) + DRIFTS + 2 * STRATA or times == 1)


def test_progress_knows_the_best_and_the_end():
    progress = Progress()
    values = [0.1, -0.1, -0.3, -0.25, -0.21, -0.19, -0.19, -0.15, -0.18]
    best = [progress.add(Measurement(100 * (i + 1), value, 0.1)) for i, value in enumerate(values)]
    assert best == [True, True, True, True, True, False, False, False, False] and progress.best == 500
    assert progress.is_over(1000) and not progress.is_over(10_000)
    assert not progress.add(Measurement(1000, -0.19, 0.1)) and progress.add(Measurement(1100, -0.201, 0.1)) and progress.best == 1100
    assert not progress.is_over(1000)
    never = Progress()
    assert [never.add(Measurement(step, value, 0.1)) for step, value in ((1, 0.2), (2, 0.3), (3, 0.1))] == [True, False, True] and never.best == 3
    assert never.why(10) == "stopped at step 3 of 10: held-out loss has never been below the base's; step 3, where it was lowest, is kept"
    assert progress.why(1000).endswith("held-out loss has lost more than a third of its gain since step 1,100, which is kept")
    again = Progress()
    again.load_state_dict(json.loads(json.dumps(progress.state_dict())))
    assert again == progress
    assert not Progress().is_over(100)


def test_a_measurement_that_is_no_number_is_never_kept_and_hides_no_other():
    progress, nan, inf = Progress(), float("nan"), float("inf")
    values = [nan, -0.3, inf, -0.2, -inf, -0.1]
    assert [progress.add(Measurement(100 * (i + 1), value, 0.1)) for i, value in enumerate(values)] == [False, True, False, True, False, False]
    assert progress.best == 400
    rising = [Measurement(10 * (i + 1), None, 0.1 * 1.1 ** i) for i in range(5)]
    diverged = [*rising, *(Measurement(50 + 30 * (i + 1), None, drift) for i, drift in enumerate((inf, nan, inf, nan)))]
    assert Progress(diverged).why(200).endswith("has not risen since step 50, so that more steps would teach little")


def test_without_held_out_pictures_the_drift_alone_ends_a_run():
    rising = [Measurement(10 * (i + 1), None, 0.1 * 1.1 ** i) for i in range(5)]
    settled = [*rising, *(Measurement(50 + 30 * (i + 1), None, rising[-1].drift * 1.01) for i in range(4))]
    assert not Progress(rising).is_over(200) and not Progress(settled[:-1]).is_over(200) and Progress(settled).is_over(200)
    assert not Progress(settled).is_over(1000), "not in the first fifth"
    assert not Progress([Measurement(10, None, 1.0), Measurement(90, None, 1.0)]).is_over(100), "two measurements are too few"
    assert Progress(settled).why(200) == "stopped at step 170 of 200: prior drift has not risen since step 50, so that more steps would teach little"


def test_a_small_gallery_s_run_ends_when_its_drift_has_settled(session_of, config, monkeypatch):
    """A rate of nothing moves nothing but the rounding of the first steps; half of the run after that it ends. Asked not to, it goes on to the end."""
    every(monkeypatch, 1)
    for early_stop in (True, False):
        outcome = session_of(config, validation=True, steps=12, learning_rate=1e-12, lr_scheduler="constant", early_stop=early_stop).train()
        said = re.match(r"stopped at step (\d+) of 12: prior drift has not risen since step (\d+),", outcome.message)
        assert outcome.status == "completed" and bool(said) == early_stop
        if said:
            stopped, highest = map(int, said.groups())
            assert outcome.step == stopped == highest + 6 < 12
        else:
            assert outcome.step == 12


def test_what_is_measured_goes_to_tensorboard(session_of, validated, monkeypatch):
    event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    every(monkeypatch, 4)
    watch = Watch()
    session_of(validated, [watch, TensorBoard()]).train()
    events = event_files.EventAccumulator(str(Path(validated.output_dir) / "tensorboard" / "mascot"))
    events.Reload()
    for tag, values in (("held_out_loss", [m.held_out for m in watch.measurements]), ("prior_drift", [m.drift for m in watch.measurements])):
        written = events.Scalars(tag)
        assert [one.step for one in written] == [4, 8] and [one.value for one in written] == pytest.approx(values, rel=1e-5)
