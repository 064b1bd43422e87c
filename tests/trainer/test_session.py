"""The loop and its endings, on the embedded base itself."""
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hotlora.trainer.backend import SampleRequest
from hotlora.trainer.gallery_files import list_files
from hotlora.trainer.listeners import RunLog, TensorBoard
from hotlora.trainer.lora_file import load_lora
from hotlora.trainer.output_files import OutputError
from hotlora.trainer.session import Listener, NotANumber, Outcome
from hotlora.trainer.state import find_states, put_states_aside, save_state


def weights_of(session):
    return {name: p.detach().clone() for name, p in session.adapter.named_parameters()}


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], **(tolerance or {"rtol": 0, "atol": 0}))


class Stopper(Listener):
    def __init__(self, after):
        self.after = after

    def stepped(self, session, report):
        if report.step == self.after:
            session.stop()


class Recorder(Listener):
    def __init__(self):
        self.losses, self.weights, self.outcome, self.drawn = [], [], None, []

    def stepped(self, session, report):
        self.losses.append(report.loss)
        self.weights.append(weights_of(session))

    def drew(self, session, step, prompts, pictures):
        self.drawn.append((step, prompts, [p.size for p in pictures]))

    def ended(self, session, outcome: Outcome):
        self.outcome = outcome


def test_training_learns_and_the_base_stays_as_it_was(session_of, config, backend):
    request = SampleRequest(prompts=("a red circle on a white background",), steps=3)
    before = backend.sample(request)[0].tobytes()
    unet = backend.components()["unet"]
    parameters = {name: (p.data_ptr(), p.clone(), p.requires_grad) for name, p in unet.named_parameters()}
    session = session_of(config)
    start = weights_of(session)
    outcome = session.train()
    assert outcome.status == "completed" and outcome.step == 4 and outcome.lora.name == "mascot.safetensors"
    assert any(not torch.equal(start[k], v) for k, v in weights_of(session).items())
    assert backend.sample(request)[0].tobytes() == before
    for name, p in unet.named_parameters():
        pointer, value, flag = parameters[name]
        assert p.data_ptr() == pointer and torch.equal(p, value) and p.requires_grad == flag, name
    assert not [m for m in unet.modules() if "forward" in m.__dict__]


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(session_of, config, tmp_path):
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        session = session_of(config, output_dir=str(tmp_path / str(number)), seed=seed)
        session.train()
        runs.append(weights_of(session))
    assert_same(runs[0], runs[1])
    assert any(not torch.equal(runs[0][k], runs[2][k]) for k in runs[0])


@pytest.mark.parametrize("batch, accumulation", [(1, 4), (2, 2)])
def test_accumulation_equals_a_larger_batch(session_of, config, tmp_path, batch, accumulation):
    whole = session_of(config, batch_size=4, steps=3, output_dir=str(tmp_path / "whole"))
    parts = session_of(config, batch_size=batch, gradient_accumulation_steps=accumulation, steps=3, output_dir=str(tmp_path / "parts"))
    # one step of plain gradient: Adam would blow rounding up to the size of the learning rate where gradients are almost zero
    for session in (whole, parts):
        session.optimizer = torch.optim.SGD(session.parameters, lr=1.0)
        session.precision.optimizer = session.optimizer
    with whole.backend.borrow():
        for session in (whole, parts):
            with session.adapter.attached(session.backend.components()):
                for _ in range(3):
                    session.train_step()
    assert_same(whole_weights := weights_of(whole), weights_of(parts), rtol=1e-4, atol=1e-6)
    assert any(v.abs().sum() > 0 for k, v in whole_weights.items() if k.endswith("up"))


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "lora_dropout": 0.2, "shuffle_tags": True, "lr_scheduler": "linear", "lr_warmup_steps": 3},
                                     {"text_encoder_target_modules": ["q_proj", "v_proj"], "lora_plus_ratio": 4.0, "dora": True}])
def test_a_stopped_and_resumed_run_is_bit_identical(session_of, config, tmp_path, changes):
    changes = {"steps": 6, **changes}
    straight = session_of(config, output_dir=str(tmp_path / "straight"), **changes)
    straight.train()
    first = session_of(config, [Stopper(3)], **changes)
    stopped = first.train()
    assert stopped.status == "stopped" and stopped.step == 3 and stopped.lora.exists() and "--resume" in stopped.message
    second = session_of(config, **changes)
    assert second.resume() == [] and second.step == 3
    assert second.train().status == "completed"
    assert_same(weights_of(straight), weights_of(second))
    a, b = (load_lora(Path(s.config.output_dir) / "mascot.safetensors")[1]["sshs_model_hash"] for s in (straight, second))
    assert a == b
    assert not find_states(second.folder, "mascot"), "a completed run needs no state"


def test_resume_names_what_has_changed_and_refuses_what_cannot_go_on(session_of, config):
    session_of(config, [Stopper(2)]).train()
    assert session_of(config, learning_rate=5e-4).resume() == ["learning_rate was 0.001 and is now 0.0005"]
    with pytest.raises(ValueError, match="another rank"):
        session_of(config, lora_rank=8).resume()
    with pytest.raises(ValueError, match="nothing left to do"):
        session_of(config, steps=1).resume()


def test_an_average_that_is_turned_on_at_a_resume_begins_with_what_was_learned(session_of, config):
    first = session_of(config, [Stopper(2)])
    learned, _ = load_lora(first.train().lora)
    session = session_of(config, ema_decay=0.9)
    assert session.resume() == ["ema_decay was 0.0 and is now 0.9"]
    session.stop()
    kept, _ = load_lora(session.train().lora)
    assert all(torch.equal(kept[key][name], layer[name]) for key, layer in learned.items() for name in ("up", "down"))


@pytest.mark.parametrize("changes", [{}, {"lora_plus_ratio": 4.0, "text_encoder_target_modules": ["q_proj"], "text_encoder_lr": 1e-4}])
def test_a_resumed_run_has_the_rates_and_the_decay_of_its_own_settings(session_of, config, changes):
    changes = {"steps": 6, "lr_scheduler": "linear", **changes}
    session_of(config, [Stopper(3)], **changes).train()
    session = session_of(config, learning_rate=5e-5, weight_decay=0.3, optimizer_args={"betas": [0.8, 0.9]}, **changes)
    own = [group["initial_lr"] for group in session.optimizer.param_groups]
    session.resume()
    rates = []
    session.listeners.append(type("Rates", (Listener,), {"stepped": lambda self, session, report: rates.append(report.learning_rate)})())
    groups = session.optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == own and [group["lr"] for group in groups] == pytest.approx([rate * 0.5 for rate in own])
    assert all(group["weight_decay"] == 0.3 and group["betas"] == (0.8, 0.9) for group in groups)
    session.train()
    assert rates == pytest.approx([own[0] * share for share in (3 / 6, 2 / 6, 1 / 6)])


@pytest.mark.parametrize("changes", [{"optimizer": "torch.optim.SGD"}, {"lora_plus_ratio": 4.0}])
def test_the_state_of_another_optimizer_is_refused(session_of, config, changes):
    session_of(config, [Stopper(2)]).train()
    (name, value), = changes.items()
    with pytest.raises(ValueError, match=f"the saved run has {name} .* and this one {value!r}, .*set {name} back, or start without --resume"):
        session_of(config, **changes).resume()


def test_a_run_that_failed_while_it_ended_is_ended_by_resume(session_of, config, tmp_path, monkeypatch):
    """The previews of the last step, here; the result is that of a run that did not fail."""
    changes = {"preview_steps": 4, "steps": 4, "save_dtype": "fp32"}
    straight = session_of(config, name="straight", **changes)
    straight.train()
    failing = session_of(config, **changes)
    monkeypatch.setattr(failing, "draw_previews", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.train()
    resumed = session_of(config, **changes)
    assert resumed.resumable() and resumed.resume() == []
    outcome = resumed.train()
    assert outcome.status == "completed" and outcome.message.startswith("completed 4 steps") and not find_states(resumed.folder, "mascot")
    assert_same(load_lora(outcome.lora)[0], load_lora(straight.folder / "straight.safetensors")[0])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full disk of Linux")
def test_what_ended_a_run_is_told_also_when_its_log_cannot_be_closed(session_of, config):
    class Full(RunLog):
        def stepped(self, session, report):
            self.handler.stream = open("/dev/full", "w")
            self.handler.stream.write("not flushed yet")
            raise OutputError("the disk is full")

    with pytest.raises(OutputError, match="the disk is full"):
        session_of(config, [Full()]).train()


def test_a_run_does_not_go_on_on_another_base(session_of, config, backend, monkeypatch):
    session_of(config, [Stopper(2)]).train()
    for base, same in (({"name": "other", "base_hash": "f" * 64, "file_hash": ""}, False), ({"base_hash": "f" * 64}, True), ({"base_hash": "f" * 64, "file_hash": "f" * 64}, False),
                       ({"name": "", "base_hash": "f" * 64, "file_hash": ""}, False), ({"name": "renamed"}, True)):
        with monkeypatch.context() as patch:
            told = {"name": backend.name, "base_hash": backend.base_hash, "file_hash": backend.file_hash, **base}
            if "base_hash" in base and "file_hash" not in base:  # a host that has not taken its file's hash yet
                told["file_hash"] = ""
            session = session_of(config)
            patch.setattr(session, "backend", _Renamed(backend, told))
            assert session.resumable() is same
            if same:
                assert session.resume() == []
            else:
                with pytest.raises(ValueError, match="the saved run trains demo, and what it learned means nothing to .* load demo to go on"):
                    session.resume()


class _Renamed:
    def __init__(self, backend, told):
        self.__dict__.update(told)
        self._backend = backend

    def __getattr__(self, name):
        return getattr(self._backend, name)


def test_a_result_that_cannot_be_written_costs_nothing_that_was_learned(session_of, config, tmp_path):
    """The folder for LoRA has gone when the run ends: the state is there, and with a folder again the run is ended."""
    straight = session_of(config, name="straight", save_dtype="fp32")
    straight.train()
    folder = tmp_path / "loras"
    changes = {"lora_dir": str(folder), "save_dtype": "fp32"}

    class Loses(Recorder):
        def stepped(self, session, report):
            if report.step == 4:
                folder.rmdir()
                folder.write_text("a file in the way", encoding="utf-8")

    recorder = Loses()
    failing = session_of(config, [recorder], **changes)
    with pytest.raises(OutputError, match="loras"):
        failing.train()
    assert recorder.outcome.status == "failed" and recorder.outcome.lora is None
    assert recorder.outcome.message.startswith("failed while it ended: ") and recorder.outcome.message.endswith("what was learned in 4 steps is kept; go on with --resume")
    folder.unlink()
    resumed = session_of(config, **changes)
    resumed.resume()
    assert_same(load_lora(resumed.train().lora)[0], load_lora(straight.folder / "straight.safetensors")[0])


def test_a_failed_run_keeps_its_state_where_its_weights_are_no_lora(session_of, config):
    """Weights that float16 cannot hold are turned down with a ValueError, which was the only word of the run's own failure."""
    class Fails(Recorder):
        def stepped(self, session, report):
            with torch.no_grad():
                session.parameters[1].fill_(1e5)
            raise RuntimeError("the cause")

    recorder = Fails()
    session = session_of(config, [recorder], save_dtype="fp16")
    with pytest.raises(RuntimeError, match="the cause"):
        session.train()
    assert recorder.outcome.lora is None and recorder.outcome.message == "failed at step 2: the cause; what was learned in 1 steps is kept; go on with --resume"
    assert find_states(session.folder, "mascot")


def test_a_damaged_state_is_passed_over(session_of, config, caplog):
    session_of(config, [Stopper(3)], save_steps=2).train()
    newest, older = find_states(Path(config.output_dir), "mascot")
    newest.write_bytes(newest.read_bytes()[:1000])
    session = session_of(config)
    session.resume()
    assert session.step == 2 and newest.name in caplog.text


def test_resume_without_a_state_is_a_clear_error(session_of, config):
    with pytest.raises(ValueError, match="nothing to resume"):
        session_of(config).resume()


def test_saves_on_the_way(session_of, config):
    session_of(config, steps=7, save_steps=2).train()
    names = sorted(p.name for p in Path(config.output_dir).glob("*.safetensors"))
    assert names == ["mascot-000002.safetensors", "mascot-000004.safetensors", "mascot-000006.safetensors", "mascot.safetensors"]


def test_a_loss_that_is_not_a_number_stops_with_the_last_good_weights(session_of, config, tmp_path):
    code = tmp_path / "term.py"
    code.write_text("def term(out, target, t, batch):\n    return out.sum() * (float('nan') if batch['step'] == 2 else 0.0)\n")
    recorder = Recorder()
    with pytest.raises(NotANumber, match="learning_rate"):
        session_of(config, [recorder], loss_term=f"{code}:term").train()
    assert recorder.outcome.status == "failed" and len(recorder.losses) == 2
    kept, _ = load_lora(recorder.outcome.lora)
    assert all(torch.isfinite(layer["up"]).all() for layer in kept.values())
    last = recorder.weights[-1]
    ups = sorted(float(v.abs().sum()) for k, v in last.items() if k.endswith("up"))
    assert sorted(float(layer["up"].abs().sum()) for layer in kept.values()) == pytest.approx(ups)


def test_a_failure_inside_a_step_keeps_what_was_learned_and_frees_the_base(session_of, config, tmp_path, backend):
    code = tmp_path / "term.py"
    code.write_text("def term(out, target, t, batch):\n    if batch['step'] == 2:\n        raise RuntimeError('a fault, say')\n    return out.sum() * 0\n")
    recorder, log = Recorder(), RunLog()
    with pytest.raises(RuntimeError, match="a fault, say"):
        session_of(config, [recorder, log], loss_term=f"{code}:term").train()
    assert recorder.outcome.status == "failed" and recorder.outcome.lora.exists()
    assert "Traceback" in log.path.read_text(encoding="utf-8")
    assert not [m for m in backend.components()["unet"].modules() if "forward" in m.__dict__]
    resumed = session_of(config)
    resumed.resume()
    assert resumed.step == 2 and resumed.train().status == "completed"


@pytest.mark.skipif(os.name != "posix", reason="/dev/full is a device of Linux")
def test_an_output_folder_that_cannot_be_written_is_a_clear_error(session_of, config, tmp_path):
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(OutputError, match="output_dir"):
        session_of(config, output_dir=str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "keep me"


def test_an_older_result_of_the_same_name_is_kept(session_of, config):
    session_of(config).train()
    first = (Path(config.output_dir) / "mascot.safetensors").read_bytes()
    session_of(config, seed=9).train()
    assert (Path(config.output_dir) / "mascot-v1.safetensors").read_bytes() == first


def test_continue_from_a_lora_file(session_of, config, tmp_path):
    first = session_of(config)
    lora = first.train().lora
    second = session_of(config, init_lora=str(lora), lora_rank=16, output_dir=str(tmp_path / "second"))
    assert_same({k: v.flatten() for k, v in weights_of(first).items()}, {k: v.flatten() for k, v in weights_of(second).items()})
    assert second.train().status == "completed"


def test_a_run_from_a_lora_file_resumes_bit_identically(session_of, config, tmp_path):
    """Whatever order the file's tensors are read in, which safetensors changes from call to call."""
    changes = {"init_lora": str(session_of(config).train().lora), "ema_decay": 0.9, "steps": 6}
    straight = session_of(config, output_dir=str(tmp_path / "straight"), **changes)
    straight.train()
    first = session_of(config, [Stopper(3)], output_dir=str(tmp_path / "parts"), **changes)
    first.train()
    second = session_of(config, output_dir=str(tmp_path / "parts"), **changes)
    assert list(first.adapter.layers) == list(second.adapter.layers) == list(straight.adapter.layers)
    assert second.resume() == [] and second.train().status == "completed"
    assert_same(weights_of(straight), weights_of(second))


def test_a_lora_that_goes_on_tells_its_own_rank_and_alpha(session_of, config, tmp_path):
    lora = session_of(config, lora_rank=3, lora_alpha=6.0, conv_rank=2).train().lora
    second = session_of(config, init_lora=str(lora), lora_rank=16, rslora=True, output_dir=str(tmp_path / "second")).train().lora
    weights, metadata = load_lora(second)
    assert {(layer["down"].shape[0], layer["alpha"]) for layer in weights.values()} == {(3, 6.0), (2, 2.0)}
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "6.0")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2.0"}


def test_a_lora_goes_on_without_the_text_encoder_where_none_is_trained(session_of, config, tmp_path, backend, monkeypatch, caplog):
    lora = session_of(config, text_encoder_target_modules=["q_proj"]).train().lora
    texts = session_of(config, unet_target_modules=[], text_encoder_target_modules=["q_proj"], name="texts").train().lora
    before, _ = load_lora(lora)
    encoder = [key for key in before if key.startswith("lora_te_")]
    more = {"init_lora": str(lora), "output_dir": str(tmp_path / "second")}
    # captions are encoded once, by the encoder as it is: layers that change it would be used with other conditions than the others were trained with
    assert load_lora(session_of(config, **more).train().lora)[0].keys() == before.keys() - set(encoder)
    assert "of the result; set text_encoder_target_modules to train them further" in caplog.text
    with_texts = session_of(config, **more, text_encoder_target_modules=["q_proj"])
    assert with_texts.dataset.trains_text and load_lora(with_texts.train().lora)[0].keys() == before.keys()
    monkeypatch.setattr(backend, "components", lambda: {"unet": backend.unet})
    after, _ = load_lora(session_of(config, **more).train().lora)
    assert encoder and after.keys() == before.keys() - set(encoder)
    assert f"mascot.safetensors also changes the text encoder, which is not trained here: {len(encoder)} of its {len(before)} layers are left out" in caplog.text
    with pytest.raises(ValueError, match="texts.safetensors has layers of a text encoder only"):
        session_of(config, **{**more, "init_lora": str(texts)})
    monkeypatch.setattr(backend, "components", lambda: {"unet": backend.unet.mid_block})
    with pytest.raises(ValueError, match=f"of {len(after)} layers of the LoRA are not in .*made for another kind of base"):
        session_of(config, **more)


def test_previews_tensorboard_and_log(session_of, config):
    event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recorder, log = Recorder(), RunLog(["a warning that was given"])
    session_of(config, [recorder, log, TensorBoard()], preview_steps=2, preview_prompts=["a photo of sks", "a red star"], log_every=1).train()
    out = Path(config.output_dir)
    assert [d[0] for d in recorder.drawn] == [2, 4] and recorder.drawn[0][2] == [(64, 64)] * 2
    assert sorted(p.name for p in (out / "previews").glob("*.png")) == [f"mascot-00000{s}-{n}.png" for s in (2, 4) for n in (0, 1)]
    assert not list_files(out).pictures, "a gallery around them does not take them for pictures of its own"
    events = event_files.EventAccumulator(str(out / "tensorboard" / "mascot"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "learning_rate", "gradient_norm", "images_per_second", "peak_memory_GB"}
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4] and set(events.Tags()["images"]) == {"preview/0", "preview/1"}
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(recorder.losses)
    text = log.path.read_text(encoding="utf-8")
    for expected in ("torch ", "learning_rate: 0.001", "6 ", "a warning that was given", "step 4", "completed"):
        assert expected in text, expected


def test_a_new_run_takes_the_place_of_the_earlier_curves_and_a_resumed_one_goes_on(session_of, config, monkeypatch):
    event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    # files of one second are read in the order of this number's text, and 10 would come before 9
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(1))

    def curve():
        events = event_files.EventAccumulator(str(Path(config.output_dir) / "tensorboard" / "mascot"))
        events.Reload()
        return [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")]

    session_of(config, [TensorBoard()], steps=6, log_every=1).train()
    second, third = Recorder(), Recorder()
    session_of(config, [second, TensorBoard(), Stopper(2)], seed=1, log_every=1).train()
    assert curve() == list(enumerate(second.losses, 1)) and len(second.losses) == 2
    resumed = session_of(config, [third, TensorBoard()], seed=1, log_every=1)
    resumed.resume()
    resumed.train()
    assert curve() == list(enumerate(second.losses + third.losses, 1)) and len(third.losses) == 2


def test_previews_do_not_change_the_run(session_of, config, tmp_path):
    plain = session_of(config, output_dir=str(tmp_path / "plain"))
    plain.train()
    drawn = session_of(config, preview_steps=1)
    drawn.train()
    assert_same(weights_of(plain), weights_of(drawn))


def test_a_stop_cuts_a_preview_short(session_of, config, backend, monkeypatch):
    recorder, calls = Recorder(), []
    session = session_of(config, [recorder], preview_steps=2, preview_prompts=["a photo of sks", "a red star"])
    sample = backend.sample

    def sample_and_stop(request):
        asked = []

        def cancelled():
            asked.append(len(asked) == 30 and session.stop())
            return request.cancelled()

        calls.append(asked)
        return sample(replace(request, cancelled=cancelled))

    monkeypatch.setattr(backend, "sample", sample_and_stop)
    outcome = session.train()
    assert (outcome.status, outcome.step) == ("stopped", 2) and outcome.lora.is_file()
    assert [len(asked) for asked in calls] == [1, 31], "one step to see what it needs; then 25 steps for the first picture, and 6 of the second"
    assert [(step, len(sizes)) for step, _, sizes in recorder.drawn] == [(2, 1)]
    assert session_of(config, preview_steps=2).resume() is not None


def test_prior_pictures_count_with_their_weight(session_of, config, gallery, tmp_path):
    losses = {}
    for weight in (0.0, 1.0):
        recorder = Recorder()
        session = session_of(config, [recorder], reg_data_dir=str(gallery), prior_loss_weight=weight, steps=6, output_dir=str(tmp_path / str(weight)))
        assert session.dataset.order.samples_per_epoch == 12
        session.train()
        losses[weight] = sum(recorder.losses)
    assert 0 < losses[0.0] < losses[1.0]


def test_of_more_prior_pictures_than_own_each_epoch_shows_others(session_of, config, tmp_path):
    (tmp_path / "prior").mkdir()
    for i in range(20):
        Image.new("RGB", (64, 64), (i * 12, 0, 0)).save(tmp_path / "prior" / f"{i:02}.png")
    changes = {"reg_data_dir": str(tmp_path / "prior"), "batch_size": 4, "steps": 5}
    straight = session_of(config, output_dir=str(tmp_path / "straight"), **changes)
    order, is_prior = straight.dataset.order, [example.is_prior for example in straight.dataset.examples]
    assert order.samples_per_epoch == 12 and order.steps_per_epoch == 3 and sum(is_prior) == 20
    prior = [{i for step in range(3 * epoch, 3 * epoch + 3) for i in order.of_step(step) if is_prior[i]} for epoch in range(4)]
    assert [len(shown) for shown in prior] == [6] * 4 and len(set().union(*prior)) == 20
    assert len(list((tmp_path / "straight" / "cache" / "latents").iterdir())) == 6 + 12, "what two epochs show is prepared"
    straight.train()
    session_of(config, [Stopper(2)], **changes).train()
    (tmp_path / "prior" / "19.png").rename(tmp_path / "19.png")
    assert session_of(config, **changes).resume() == ["repeats, masks or prior pictures have changed since"], "not by what earlier versions noted"
    (tmp_path / "19.png").rename(tmp_path / "prior" / "19.png")
    second = session_of(config, **changes)
    assert second.resumable() and second.resume() == [] and second.train().step == 5
    assert_same(weights_of(straight), weights_of(second))


def test_the_written_keys_and_metadata(session_of, config):
    weights, metadata = load_lora(session_of(config, save_format="both").train().lora)
    assert all(key.startswith("lora_unet_") for key in weights)
    assert metadata["ss_base_model_version"] == "hotlora_demo" and metadata["ss_output_name"] == "mascot" and metadata["ss_network_dim"] == "4"
    peft, _ = load_lora(Path(config.output_dir) / "mascot-peft" / "pytorch_lora_weights.safetensors")
    assert peft.keys() == weights.keys()


def test_a_form_that_cannot_be_written_is_told_before_and_costs_nothing(session_of, config, backend, monkeypatch, caplog):
    monkeypatch.setattr(backend, "lora_key", lambda component, path: f"lora_unet_double_blocks_{path.replace('.', '_')}")
    session = session_of(config, save_format="peft")
    assert "save_format is peft, but the LoRA key 'lora_unet_double_blocks_" in caplog.text and "the kohya form alone is written" in caplog.text
    assert load_lora(session.train().lora)[0] and not list(Path(config.output_dir).glob("*-peft"))


def test_a_run_without_a_name_tells_the_one_of_its_folder(session_of, config):
    """By it a list knows a LoRA from a saved step."""
    _, metadata = load_lora(session_of(config, name=None).train().lora)
    assert json.loads(metadata["hotlora.config"])["name"] == metadata["ss_output_name"] == "my pictures"


@pytest.mark.parametrize("changes", [{"mixed_precision": "bf16"}, {"gradient_checkpointing": True}, {"conv_rank": 2},
                                     {"optimizer": "torch.optim.RAdam"}, {"crops": 3, "flip": True}, {"loss_type": "huber", "noise_offset": 0.1}])
def test_options_train(session_of, config, changes):
    recorder = Recorder()
    assert session_of(config, [recorder], **changes).train().status == "completed"
    assert len(recorder.losses) == 4 and all(0 < loss < 10 for loss in recorder.losses)


def test_checkpointing_gives_the_same_weights(session_of, config, tmp_path):
    plain = session_of(config, output_dir=str(tmp_path / "plain"))
    plain.train()
    checkpointed = session_of(config, gradient_checkpointing=True)
    checkpointed.train()
    assert_same(weights_of(plain), weights_of(checkpointed), rtol=1e-5, atol=1e-7)


def test_the_lora_can_go_to_a_folder_of_its_own(config, session_of, tmp_path):
    outcome = session_of(config, lora_dir=str(tmp_path / "models" / "Lora"), save_steps=2).train()
    assert outcome.lora == tmp_path / "models" / "Lora" / "mascot.safetensors"
    assert sorted(p.name for p in outcome.lora.parent.iterdir()) == ["mascot-000002.safetensors", "mascot.safetensors"]
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_run_that_is_stopped_before_its_first_step_takes_no_name(config, session_of):
    earlier = session_of(config).train().lora.read_bytes()
    stopped, recorder = session_of(config), Recorder()
    stopped.listeners.append(recorder)
    stopped.stop()
    outcome = stopped.train()
    assert (outcome.status, outcome.step, outcome.lora) == ("stopped", 0, None) and recorder.outcome is outcome
    assert "before the first step" in outcome.message and "--resume" in outcome.message
    assert [path.name for path in stopped.folder.glob("*.safetensors")] == ["mascot.safetensors"]
    assert (stopped.folder / "mascot.safetensors").read_bytes() == earlier
    again = session_of(config)
    again.resume()
    assert again.train().status == "completed"


def test_resumable_says_whether_the_unfinished_run_is_the_same(config, session_of):
    assert not session_of(config).resumable()
    stopped = session_of(config)
    stopped.stop()
    stopped.train()
    assert session_of(config).resumable() and session_of(config, save_steps=1).resumable()
    assert not session_of(config, learning_rate=2e-3).resumable() and not session_of(config, lora_rank=2).resumable()
    session_of(config).train()
    assert not session_of(config).resumable()


def test_a_run_whose_repeats_or_masks_have_changed_is_not_the_same(config, session_of, gallery):
    masked = replace(config, train_data_dir=str(gallery.parent), masks=True)
    gallery.rename(gallery.parent / "1_sks")
    session_of(masked, [Stopper(2)]).train()
    assert session_of(masked).resumable()
    (gallery.parent / "1_sks").rename(gallery.parent / "3_sks")
    changed = session_of(masked)
    assert not changed.resumable() and changed.resume() == ["repeats, masks or prior pictures have changed since"]
    (gallery.parent / "3_sks").rename(gallery.parent / "1_sks")
    assert session_of(masked).resumable()
    Image.new("L", (64, 64), 0).save(gallery.parent / "1_sks" / "0_mask.png")
    assert not session_of(masked).resumable()


def test_a_state_of_an_earlier_version_tells_no_repeats_and_goes_on(config, session_of, gallery):
    several = replace(config, train_data_dir=str(gallery.parent))
    gallery.rename(gallery.parent / "3_sks")
    stopped = session_of(several, [Stopper(2)])
    stopped.train()
    state = torch.load(find_states(stopped.folder, "mascot")[0], weights_only=True)
    del state["use"], state["version"]
    save_state(stopped.folder, "mascot", state.pop("step"), state)
    again = session_of(several)
    assert again.resumable() and again.resume() == []


def test_states_that_are_put_aside_meet_no_other_run(config, session_of):
    stopped, other = session_of(config), session_of(config, learning_rate=2e-3)
    stopped.stop()
    stopped.train()
    names = [path.name for path in find_states(stopped.folder, "mascot")]
    kept = put_states_aside(stopped.folder, "mascot")
    other.stop()
    other.train()
    assert session_of(config, learning_rate=2e-3).resumable() and not session_of(config).resumable()
    assert [path.name for path in find_states(kept, "mascot")] == names
    assert put_states_aside(stopped.folder, "mascot") != kept
