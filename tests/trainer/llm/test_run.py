"""Language-model runs on a small LLaMA with random weights: what they write, how they end, and how they go on."""
from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from hotlora.trainer.llm.checkpoints import checkpoints_folder, find_checkpoints
from hotlora.trainer.llm.model import load_base
from hotlora.trainer.output_files import OutputError
from hotlora.trainer.session import NotANumber

ROOT = Path(__file__).resolve().parents[3]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "adapter_model.safetensors"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.action()


def during(run, step, action):
    """Let `action` happen after a step, before what else happens there."""
    make = run._make_trainer

    def make_and_add():
        make()
        run.trainer.callback_handler.callbacks.insert(0, At(step, action))

    run._make_trainer = make_and_add
    return run


def test_the_result_is_a_peft_adapter_with_the_same_logits(config, run_of, base):
    run = run_of(replace(config, target_modules="q_proj, v_proj, down_proj"))
    outcome = run.train()
    assert outcome.status == "completed" and outcome.step == 6 and outcome.lora == Path(config.output_dir) / "facts"
    ids = torch.tensor([[0, 40, 50, 60, 70]])
    trained = run.trainer.model.eval()(input_ids=ids).logits
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = plain(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(plain, str(outcome.lora)).eval()
    assert torch.equal(loaded(input_ids=ids).logits, trained) and not torch.allclose(before, trained, atol=1e-3)
    about = json.loads((outcome.lora / "hotlora.json").read_text())
    assert about["step"] == 6 and about["settings"]["lora_rank"] == 4
    assert not checkpoints_folder(config.output_dir, "facts").exists()
    assert not [path for path in outcome.lora.iterdir() if path.suffix in (".bin", ".pt", ".pth")], "pickles"
    assert (outcome.lora / "chat_template.jinja").is_file() or "chat_template" in (outcome.lora / "tokenizer_config.json").read_text()


def test_the_loss_falls_and_the_base_stays_as_it_was(config, run_of, base):
    before = (base / "model.safetensors").read_bytes()
    run = run_of(replace(config, steps=40, learning_rate=0.02, target_modules="all-linear", log_every=1))
    assert run.train().status == "completed"
    losses = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert (base / "model.safetensors").read_bytes() == before


def test_an_earlier_result_is_kept(config, run_of):
    first = weights(run_of(config).train().lora)
    second = run_of(replace(config, seed=5)).train().lora
    assert same(weights(second.with_name("facts-v1")), first) and not same(weights(second), first)


def test_the_same_seed_gives_the_same_weights(config, run_of, tmp_path):
    config = replace(config, lora_dropout=0.2)
    assert same(weights(run_of(config).train().lora), weights(run_of(replace(config, output_dir=str(tmp_path / "other"))).train().lora))


@pytest.mark.parametrize("changes", [{}, {"lora_dropout": 0.2}, {"gradient_accumulation_steps": 2, "batch_size": 2, "packing": True, "max_length": 32},
                                     {"eval_data_dir": "same", "eval_steps": 2, "early_stop": False}])
def test_a_stopped_run_goes_on_exactly(config, run_of, tmp_path, changes):
    if changes.get("eval_data_dir"):
        changes = {**changes, "eval_data_dir": config.train_data_dir}
    config = replace(config, steps=9, **changes)
    undisturbed = weights(run_of(replace(config, output_dir=str(tmp_path / "undisturbed"))).train().lora)
    run = run_of(config)
    stopped = during(run, 4, run.stop).train()
    assert stopped.status == "stopped" and stopped.step == 4 and "--resume" in stopped.message
    assert not same(weights(stopped.lora), undisturbed)
    run = run_of(config, resume=True)
    assert run.step == 4 and run.changes == []
    done = run.train()
    assert done.status == "completed" and done.step == 9 and same(weights(done.lora), undisturbed)


def test_a_new_run_takes_the_place_of_the_earlier_curves_and_a_resumed_one_goes_on(config, run_of, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer as writer

    # files of one second are read in the order of this number's text, and 10 would come before 9
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(1))

    def steps():
        events = EventAccumulator(str(Path(config.output_dir) / "tensorboard" / "facts"))
        events.Reload()
        return [event.step for event in events.Scalars("loss")]

    config = replace(config, tensorboard=True, log_every=1)
    run_of(config).train()
    assert steps() == [1, 2, 3, 4, 5, 6]
    run = run_of(config)
    during(run, 3, run.stop).train()
    assert steps() == [1, 2, 3]
    run_of(config, resume=True).train()
    assert steps() == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_run_goes_on_exactly(config, run_of, tmp_path):
    config = replace(config, steps=12, save_steps=5, lora_dropout=0.1)
    undisturbed = weights(run_of(replace(config, output_dir=str(tmp_path / "undisturbed"))).train().lora)
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    code = ("import os, signal, sys; sys.path.insert(0, sys.argv[1]); import __init__\n"
            "from hotlora.trainer.llm import callbacks\n"
            "usual = callbacks.Flow.on_step_end\n"
            "def on_step_end(self, args, state, control, **others):\n"
            "    if state.global_step == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return usual(self, args, state, control, **others)\n"
            "callbacks.Flow.on_step_end = on_step_end\n"
            "from hotlora.trainer.cli import main\n"
            "main(['--config', sys.argv[2]])\n")
    killed = subprocess.run([sys.executable, "-c", code, str(ROOT), str(file)], capture_output=True, text=True, timeout=600)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = checkpoints_folder(config.output_dir, "facts")
    assert [step for step, _ in find_checkpoints(folder)] == [5]
    half_written = folder / "checkpoint-7"
    half_written.mkdir()
    (half_written / "trainer_state.json").write_text("{")
    run = run_of(config, resume=True)
    assert run.step == 5
    done = run.train()
    assert done.status == "completed" and same(weights(done.lora), undisturbed)
    assert (Path(config.output_dir) / "facts-000005" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("validation", [False, True])
def test_a_result_that_could_not_be_written_is_written_by_resume(config, run_of, tmp_path, monkeypatch, validation):
    config = replace(config, validation=validation, learning_rate=0.05, eval_steps=1)
    undisturbed = run_of(replace(config, output_dir=str(tmp_path / "undisturbed"))).train()
    run = run_of(config)
    monkeypatch.setattr(run, "_save_result", lambda step: (_ for _ in ()).throw(OutputError("the disk is full")))
    with pytest.raises(OutputError):
        run.train()
    run = run_of(config, resume=True)
    done = run.train()
    assert run.changes == [] and (done.status, done.step) == ("completed", 6) and not run.checkpoints.exists()
    assert same(weights(done.lora), weights(undisturbed.lora)) and done.message.replace(str(done.lora), "") == undisturbed.message.replace(str(undisturbed.lora), "")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_stops_after_the_step_and_saves(config, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(replace(config, steps=100_000, log_every=1).to_yaml(), encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--config", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    logs = Path(config.output_dir) / "logs"
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None and not any("step 2 loss" in log.read_text() for log in logs.glob("*.log")):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 3, errors
    assert "stopped after step" in out and "--resume" in out
    assert weights(Path(config.output_dir) / "facts")


def test_a_new_run_puts_the_state_of_an_unfinished_one_aside(config, run_of):
    run = run_of(config)
    during(run, 3, run.stop).train()
    assert run_of(config).train().status == "completed"
    folder = checkpoints_folder(config.output_dir, "facts")
    assert find_checkpoints(folder.with_name(f"{folder.name}-v1"))[0][0] == 3


def test_resume_says_what_has_changed_and_refuses_what_cannot_fit(config, run_of, records):
    with pytest.raises(ValueError, match="nothing to resume"):
        run_of(config, resume=True)
    run = run_of(config)
    during(run, 3, run.stop).train()
    with pytest.raises(ValueError, match="lora_rank 4 and this one 8"):
        run_of(replace(config, lora_rank=8), resume=True)
    with pytest.raises(ValueError, match="nothing left"):
        run_of(replace(config, steps=3), resume=True)
    records.write_text(records.read_text(encoding="utf-8") + '{"prompt": "One more?", "completion": "yes"}\n', encoding="utf-8")
    changes = " ".join(run_of(replace(config, learning_rate=1e-3, batch_size=2, steps=7), resume=True).changes)
    for part in ("learning_rate was 0.005 and is now 0.001", "took 4 rows and now takes 2", "end at step 6 and now ends at 7", "records have changed"):
        assert part in changes


def test_a_resumed_run_has_the_rate_and_the_decay_of_its_own_settings(config, run_of):
    config = replace(config, lr_scheduler="linear", log_every=1)
    run = run_of(config)
    during(run, 3, run.stop).train()
    with pytest.raises(ValueError, match="optimizer 'adamw' and this one 'adafactor', .*set optimizer back"):
        run_of(replace(config, optimizer="adafactor"), resume=True)
    run = run_of(replace(config, learning_rate=1e-5, weight_decay=0.3), resume=True)
    used, decay = {}, []

    def note():
        used.update({run.trainer.state.global_step: run.trainer.optimizer.param_groups[0]["lr"]})
        decay.append(run.trainer.optimizer.param_groups[0]["weight_decay"])

    for step in (4, 5):
        during(run, step, note)
    run.train()
    logged = {entry["step"]: entry["learning_rate"] for entry in run.trainer.state.log_history if "learning_rate" in entry}
    assert used == pytest.approx({4: 1e-5 * 2 / 6, 5: 1e-5 / 6}) and decay == [0.3, 0.3]
    assert logged[4] == pytest.approx(1e-5 * 3 / 6), "from the first step on"


def test_a_gradient_that_is_not_a_number_ends_the_run_and_keeps_the_weights(config, run_of, monkeypatch):
    run = run_of(replace(config, save_steps=2))

    def spoil():
        run.trainer.model.base_model.model.model.norm.weight.data.fill_(float("nan"))

    with pytest.raises(NotANumber, match="step 4.*learning_rate"):
        during(run, 3, spoil).train()
    assert all(torch.isfinite(tensor).all() for tensor in weights(Path(config.output_dir) / "facts").values())
    log = next((Path(config.output_dir) / "logs").glob("*.log")).read_text(encoding="utf-8")
    assert "failed at step 4" in log and "from step 2" in log and "Traceback" in log


def test_a_full_memory_is_explained(config, run_of):
    run = run_of(config)

    def fill():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(ValueError, match="memory of cpu does not suffice; try gradient_checkpointing: true, then batch_size: 2 with gradient_acc"):
        during(run, 2, fill).train()
    assert weights(Path(config.output_dir) / "facts")


def test_a_base_that_cannot_fit_is_refused_before_it_is_loaded(config, run_of, monkeypatch):
    from hotlora.trainer.llm import needs

    monkeypatch.setattr(needs, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match="needs .* for its weights alone .* load_in: 4bit"):
        run_of(config)


def test_the_memory_that_is_said_is_near_what_a_step_keeps(config, run_of):
    """The estimate is made on a short row and scaled up; here against the whole batch itself."""
    from hotlora.trainer.llm.needs import _kept

    run = run_of(replace(config, batch_size=8))
    batch = run.collate([run.material.train[number] for number in range(8)])
    own = {p.untyped_storage().data_ptr(): 0 for p in run.model.parameters()}
    run.model.train()
    kept = _kept(run.model, batch, own) + batch["input_ids"].numel() * run.model.config.vocab_size * 4
    assert 0.7 * kept < run.needs.batch < 1.5 * kept


def test_gradient_checkpointing_and_bf16_train(config, run_of):
    light = run_of(replace(config, gradient_checkpointing=True))
    assert light.needs.batch < run_of(config).needs.batch
    plain = weights(run_of(replace(config, output_dir=config.output_dir + "2")).train().lora)
    checkpointed = weights(light.train().lora)
    assert all(torch.allclose(checkpointed[key], plain[key], atol=1e-5) for key in plain)
    half = run_of(replace(config, mixed_precision="bf16", output_dir=config.output_dir + "3"))
    assert next(half.model.base_model.model.parameters()).dtype == torch.bfloat16
    outcome = half.train()
    assert outcome.status == "completed" and all(tensor.dtype == torch.float32 for tensor in weights(outcome.lora).values())


def test_merged_weights_answer_like_base_and_adapter(config, run_of, base):
    outcome = run_of(replace(config, merge=True)).train()
    ids = torch.tensor([[0, 41, 52, 63]])
    merged = AutoModelForCausalLM.from_pretrained(outcome.files[0])(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(load_base(base, torch.device("cpu"), torch.float32), str(outcome.lora))
    assert torch.allclose(merged, loaded(input_ids=ids).logits, atol=1e-5)
    assert (outcome.files[0] / "tokenizer.json").is_file()


def test_a_run_continues_an_adapter(config, run_of):
    first = run_of(config).train().lora
    run = run_of(replace(config, init_lora=str(first), name="more", lora_rank=9))
    assert same({key: tensor for key, tensor in weights(first).items()},
                {key.replace(".default", ""): tensor.detach() for key, tensor in run.model.named_parameters() if tensor.requires_grad})
    assert run.train().status == "completed"


@pytest.mark.parametrize("layers, expected", [(4, "it has 8 weights for layers that the model lacks"), (1, "it lacks 4 weights for layers of the model")])
def test_an_adapter_of_a_base_with_other_layers_is_not_continued(config, run_of, world, tmp_path, layers, expected):
    from hotlora.bench.llm_world import random_base

    other = run_of(replace(config, base_model=str(random_base(tmp_path / "other", world, layers=layers)), steps=1)).train().lora
    with pytest.raises(ValueError, match=f"init_lora is .*, which does not fit this base .{expected}, such as .*give an adapter that was trained on it"):
        run_of(replace(config, init_lora=str(other), name="more"))


def test_a_continued_adapter_gets_the_dropout_of_the_settings(config, run_of):
    first = run_of(replace(config, lora_dropout=0.25)).train().lora
    for dropout in (0.5, 0.0):
        run = run_of(replace(config, init_lora=str(first), name="more", lora_dropout=dropout))
        layers = {module.p for name, module in run.model.named_modules() if name.endswith("lora_dropout.default") and isinstance(module, torch.nn.Dropout)}
        assert layers == ({dropout} if dropout else set())
        assert json.loads((run.train().lora / "adapter_config.json").read_text())["lora_dropout"] == dropout


def test_an_adapter_that_has_no_dropout_is_continued_and_the_setting_named(config, run_of, tmp_path, caplog):
    from peft import IA3Config, get_peft_model

    base = load_base(Path(config.base_model), torch.device("cpu"), torch.float32)
    adapter = tmp_path / "other"
    get_peft_model(base, IA3Config(task_type="CAUSAL_LM", target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"])).save_pretrained(adapter)
    run_of(replace(config, init_lora=str(adapter), name="more", lora_dropout=0.5))
    assert "lora_dropout has no effect here: the adapter of init_lora is no LoRA (IA3)" in caplog.text


def test_early_stop_keeps_the_best_step(config, run_of, tmp_path):
    """The measured answers are others than the trained ones, so that learning makes them less likely."""
    wrong = tmp_path / "wrong.jsonl"
    lines = [json.loads(line) for line in Path(config.train_data_dir).read_text().splitlines()]
    wrong.write_text("".join(json.dumps({"prompt": line["prompt"], "completion": "zzz qqq xxx"}) + "\n" for line in lines))
    run = run_of(replace(config, steps=200, eval_data_dir=str(wrong), eval_steps=2, patience=3, learning_rate=0.02, target_modules="all-linear"))
    outcome = run.train()
    assert outcome.status == "completed" and outcome.step < 200 and "got no better in 3 measurements" in outcome.message
    measured = {entry["step"]: entry["eval_loss"] for entry in run.trainer.state.log_history if "eval_loss" in entry and entry["step"]}
    best = min(measured, key=measured.get)
    began = next(entry["eval_loss"] for entry in run.trainer.state.log_history if "eval_loss" in entry and not entry["step"])
    said = f"step {best} was the best" if measured[best] < began else f"never been below the base's ({math.exp(began):.4g}); step {best}, where it was lowest"
    assert said in outcome.message and best < outcome.step
    assert json.loads((outcome.lora / "hotlora.json").read_text())["step"] == best
    ids = run.collate([run.material.held_out[number] for number in range(len(run.material.held_out))])
    logits = PeftModel.from_pretrained(load_base(run.material.base, torch.device("cpu"), torch.float32), str(outcome.lora))(
        **{name: tensor for name, tensor in ids.items() if name != "labels"}).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids["labels"][:, 1:].flatten(), ignore_index=-100)
    assert loss.item() == pytest.approx(measured[best], rel=1e-4), "perplexity is that of a token, whatever the batches"
    assert not same(weights(outcome.lora), weights(outcome.lora.with_name("facts-last")))


def test_a_run_that_never_gets_better_than_what_it_began_with_says_so(config, run_of):
    """It begins with a base, or an adapter, that knows the measured records already, and its rate is far too high."""
    known = run_of(replace(config, steps=40, learning_rate=0.02, target_modules="all-linear", merge=True)).train()
    config = replace(config, eval_data_dir=config.train_data_dir, eval_steps=1, steps=4, learning_rate=10, max_grad_norm=0, name="worse")
    for changes, whose in (({"base_model": str(known.files[0])}, "the base's"), ({"init_lora": str(known.lora)}, "that of init_lora")):
        message = run_of(replace(config, **changes)).train().message
        assert f"the held-out perplexity has never been below {whose} (" in message and "was the best" not in message


def test_previews_stand_side_by_side_with_the_base_and_change_nothing(config, run_of, tmp_path):
    without = weights(run_of(replace(config, output_dir=str(tmp_path / "without"), lora_dropout=0.1)).train().lora)
    run = run_of(replace(config, preview_steps=4, preview_prompts=["Where is a|b?", "Who?"], preview_max_tokens=4, tensorboard=True, lora_dropout=0.1))
    outcome = run.train()
    assert same(weights(outcome.lora), without)
    files = sorted((Path(config.output_dir) / "previews").iterdir())
    assert [file.name for file in files] == ["facts-000004.md", "facts-000006.md"]
    rows = files[0].read_text(encoding="utf-8").splitlines()
    assert rows[2] == "| prompt | base | LoRA |" and rows[4].startswith("| Where is a\\|b? | ") and len(rows) == 6
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(config.output_dir) / "tensorboard" / "facts"))
    events.Reload()
    assert {"loss", "learning_rate", "grad_norm"} <= set(events.Tags()["scalars"]) and events.Tags()["tensors"] == ["previews/text_summary"]
