"""Tiny random models of the families: the LoRA trains, is saved, and loads; bases in 4 and 8 bits where bitsandbytes is."""
from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hotlora.bench.llm_world import make_model, random_base
from hotlora.trainer.llm.merging import write_merged
from hotlora.trainer.llm.model import check_bits, check_packing, load_base
from hotlora.trainer.llm.needs import BITS, weights_on_paper
from hotlora.trainer.llm.tokens import Collator, Rows, Sample

FAMILIES = [name for name in ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2", "Phi3", "GPT2") if hasattr(transformers, f"{name}ForCausalLM")]
OWN_LAYERS = {"Phi3": ["qkv_proj"], "GPT2": ["c_attn"]}
bits = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lora_trains_is_saved_and_loads(config, run_of, world, tmp_path, family):
    base = random_base(tmp_path / family, world, family)
    run = run_of(replace(config, base_model=str(base), learning_rate=0.01, target_modules=OWN_LAYERS.get(family, config.target_modules)))
    outcome = run.train()
    assert outcome.status == "completed"
    learned = run.trainer.mean_loss(run.material.train)
    with run.model.disable_adapter():
        assert learned < run.trainer.mean_loss(run.material.train)
    ids = torch.tensor([[0, 40, 50, 60, 70]])
    trained = run.trainer.model.eval()(input_ids=ids).logits
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = plain(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(plain, str(outcome.lora)).eval()
    assert torch.equal(loaded(input_ids=ids).logits, trained) and not torch.allclose(before, trained, atol=1e-3)


def test_a_layer_that_is_not_there_is_named_with_those_that_are(config, run_of):
    with pytest.raises(ValueError, match="target_modules names q_prj, but this model has no such layer.*q_proj.*all-linear means all of them"):
        run_of(replace(config, target_modules=["q_prj"]))


@pytest.mark.parametrize("target, expected", [("layers.0.mlp.up_proj", 2), ("all-linear", 28), ("q_proj, v_proj", 8)])
def test_which_layers_are_trained(config, run_of, target, expected):
    assert len([p for p in run_of(replace(config, target_modules=target)).model.parameters() if p.requires_grad]) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family, fits", [("Llama", True), ("Gemma2", True), ("GPT2", True), ("Bloom", False), ("Mamba", False)])
def test_packing_is_turned_down_where_records_would_be_read_with_those_before_them(family, fits, dtype):
    """Bloom has ALiBi, Mamba recurs along the row."""
    if not hasattr(transformers, f"{family}ForCausalLM"):
        pytest.skip(f"this transformers has no {family}")
    model = make_model(64, 32, 4, family, spread=0.3).to(dtype).eval()
    samples = [Sample(list(range(3, 3 + n)), list(range(3, 3 + n))) for n in (7, 40, 6)]
    collate = Collator(2, True)
    check_packing(model, Rows([[sample] for sample in samples]), collate)
    with nullcontext() if fits else pytest.raises(ValueError, match=f"packing is true, but {family}ForCausalLM reads across .*; set packing: false"):
        check_packing(model, Rows([samples[:1], samples[1:]]), collate)


def test_a_run_with_packing_says_so_before_it_trains(config, run_of, world, tmp_path):
    base = random_base(tmp_path / "bloom", world, "Bloom")
    with pytest.raises(ValueError, match="packing is true, but BloomForCausalLM"):
        run_of(replace(config, base_model=str(base), packing=True, target_modules=["query_key_value"]))
    assert run_of(replace(config, base_model=str(base), target_modules=["query_key_value"])).train().status == "completed"


@pytest.mark.parametrize("changes, expected", [({"load_in": "4bit"}, "load_in is 4bit, which needs the package bitsandbytes; .*or remove load_in"),
                                               ({"optimizer": "adamw8bit"}, "optimizer is adamw8bit, which needs .* set optimizer: adamw")])
def test_without_bitsandbytes_it_says_what_to_install(config, run_of, changes, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=expected):
        run_of(replace(config, **changes))


def test_where_bitsandbytes_cannot_work_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr("hotlora.trainer.llm.model.find_spec", lambda name: object())
    with pytest.raises(ValueError, match="load_in is 4bit, which bitsandbytes cannot do on mps; use a CUDA GPU, or remove load_in"):
        check_bits("4bit", torch.device("mps"))
    with pytest.raises(ValueError, match="optimizer is adamw8bit, which bitsandbytes cannot do on cpu"):
        check_bits(None, torch.device("cpu"), "adamw8bit")
    check_bits("4bit", torch.device("cuda"))


@bits
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_a_base_in_fewer_bits_trains_and_its_weights_stay(config, run_of, base, tmp_path, load_in):
    run = run_of(replace(config, load_in=load_in, steps=20, learning_rate=0.02, log_every=1, target_modules="all-linear"))
    layer = run.model.base_model.model.model.layers[0].self_attn.q_proj
    kind = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[load_in]
    assert type(layer.base_layer).__name__ == kind
    before = layer.base_layer.weight.data.clone()
    outcome = run.train()
    losses = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0] and torch.equal(layer.base_layer.weight.data, before)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(str(outcome.lora / "adapter_model.safetensors")).values())
    ids = torch.tensor([[0, 41, 52, 63]])
    merged = AutoModelForCausalLM.from_pretrained(write_merged(base, outcome.lora, tmp_path / 'merged'))(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(load_base(base, torch.device("cpu"), torch.float32), str(outcome.lora))
    assert torch.allclose(merged, loaded(input_ids=ids).logits, atol=1e-4), "worked into the base as it is on the disk, not into its fewer bits"


@bits
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_what_is_asked_before_a_step_changes_no_gradient_in_fewer_bits(world, tmp_path, load_in):
    """On CPUs with AVX512-BF16 bitsandbytes lays the weights out anew for the first question, and that layout has no backward."""
    model = load_base(random_base(tmp_path / "wide", world, width=256), torch.device("cpu"), torch.float32, load_in)
    embedded = model.get_input_embeddings()(torch.tensor([[3, 41, 52, 63]])).requires_grad_()

    def gradient() -> torch.Tensor:
        model.train()
        return torch.autograd.grad(model(inputs_embeds=embedded).logits.square().mean(), embedded)[0]

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(inputs_embeds=embedded)
    assert before.abs().max() > 0 and torch.equal(gradient(), before)


@bits
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_the_weights_in_fewer_bits_are_known_before_they_are_loaded(world, tmp_path, load_in):
    base = random_base(tmp_path / "wide", world, width=512)
    model = load_base(base, torch.device("cpu"), torch.float32, load_in)
    there = sum(p.untyped_storage().nbytes() for p in model.parameters())
    assert there < weights_on_paper(base, torch.float32, load_in) < 1.1 * there and BITS[load_in] < 1.1
