"""The backend without a host, on models with random weights, with every connection refused."""
from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hotlora.trainer.adapter import Adapter
from hotlora.trainer.backend import SampleRequest
from hotlora.trainer.hosts import standalone
from hotlora.trainer.hosts.parts import clip_tokenizer
from hotlora.trainer.hosts.sampling import draw
from hotlora.trainer.hosts.standalone import StandaloneBackend, load_base, pick_device
from hotlora.trainer.lora_file import load_lora, save_lora, to_file_weights, to_layers
from hotlora.trainer.peft_format import export_file

from tests import random_models
from tests.random_models import backend_of_file, predict

diffusers = pytest.importorskip("diffusers")
CPU, FP32 = torch.device("cpu"), torch.float32
FAMILIES = ("sd15", "sd2", "sdxl")
PROMPT = "a photo of a cat, highly detailed!"
REQUEST = SampleRequest((PROMPT,), negative="blurry", seed=3, steps=2, guidance=6.0)


@pytest.fixture(scope="module")
def pipelines(folders) -> dict:
    """The same folders, as diffusers loads them."""
    load = diffusers.DiffusionPipeline.from_pretrained
    made = {family: load(str(folder), local_files_only=True) for family, folder in folders.items()}
    for pipeline in made.values():
        pipeline.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def backend(loaded) -> StandaloneBackend:
    """A backend with flags of its own over modules that the tests share."""
    return StandaloneBackend(loaded["sd15"].parts, CPU, FP32)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.int16)


def test_the_vocabulary_is_clips():
    assert clip_tokenizer()("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(clip_tokenizer()) == 49408
    assert clip_tokenizer()("naïve 猫").input_ids[1:-1] == clip_tokenizer()("NAÏVE  猫").input_ids[1:-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_equal_those_of_the_diffusers_pipeline(family, loaded, pipelines):
    wanted = draw_with(pipelines[family])
    assert np.abs(pixels(loaded[family].sample(REQUEST)[0]) - pixels(wanted)).max() <= 1


def draw_with(pipeline) -> Image.Image:
    return pipeline(PROMPT, negative_prompt="blurry", num_inference_steps=2, guidance_scale=6.0, height=32, width=32,
                    generator=torch.Generator().manual_seed(3)).images[0]


def test_the_embedded_base():
    backend = load_base("demo", device="cpu")
    assert (backend.family, backend.name, backend.prediction.kind, backend.resolution) == ("demo", "demo", "v", 64)
    assert backend.prediction.alphas_cumprod[-1] == 0
    picture = backend.sample(SampleRequest(("a red circle",), steps=2))[0]
    assert picture.size == (64, 64) and pixels(picture).std() > 5
    assert backend.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, backend.latent_channels, 8, 8)


def test_a_miniature_of_the_embedded_bases_kind(tmp_path):
    shapes = random_models.tiny_shapes("sd15")
    shapes["vae"]["latent_channels"] = shapes["unet"]["in_channels"] = shapes["unet"]["out_channels"] = 8
    schedule = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    folder = random_models.write_folder(tmp_path / "small base", shapes, **schedule)
    backend = load_base(f"{folder}/", device="cpu")
    assert (backend.family, backend.name, backend.prediction.kind, backend.resolution) == ("demo", "small base", "v", 32)
    assert backend.prediction.alphas_cumprod[-1] == 0
    assert np.isfinite(pixels(backend.sample(SampleRequest(("x",), steps=2))[0])).all()


def test_a_picture_does_not_depend_on_what_else_is_drawn(backend):
    wanted = (("one", 7), ("two", 8), ("two", 7))
    alone = [backend.sample(SampleRequest((prompt,), seed=seed, steps=3))[0] for prompt, seed in wanted]
    together = backend.sample(SampleRequest(("one", "two", "two"), seeds=(7, 8, 7), steps=3))
    assert [p.tobytes() for p in together] == [p.tobytes() for p in alone]
    batched = backend.sample(SampleRequest(("one", "two", "two"), seeds=(7, 8, 7), steps=3, batch=3))
    assert max(np.abs(pixels(a) - pixels(b)).max() for a, b in zip(alone, batched)) <= 1
    assert np.abs(pixels(alone[1]) - pixels(alone[2])).max() > 1, "the seed must matter"
    assert np.abs(pixels(alone[0]) - pixels(alone[2])).max() > 1, "the prompt must matter"


def test_size_steps_and_seeds_are_checked(backend):
    assert backend.sample(SampleRequest(("x",), width=48, height=32, steps=1, guidance=1.0))[0].size == (48, 32)
    with pytest.raises(ValueError, match="width is 33; it must be a multiple of 2"):
        backend.sample(SampleRequest(("x",), width=33))
    with pytest.raises(ValueError, match="at least 1 step"):
        SampleRequest(("x",), steps=0)
    with pytest.raises(ValueError, match="one seed per prompt"):
        SampleRequest(("x", "y"), seeds=(1,))
    with pytest.raises(ValueError, match="no prompt"):
        SampleRequest(())


def test_latents_are_scaled_and_come_back(backend):
    x_B3HW = torch.rand(2, 3, 32, 48) * 2 - 1
    z_BCHW = backend.encode_image(x_B3HW)
    wanted = backend.vae.encode(x_B3HW).latent_dist.mean * 0.18215
    assert z_BCHW.dtype == torch.float32 and not z_BCHW.requires_grad
    torch.testing.assert_close(z_BCHW, wanted)
    torch.testing.assert_close(backend.decode_image(z_BCHW), backend.vae.decode(wanted / 0.18215).sample)


@pytest.mark.parametrize("family", ("sd15", "sdxl"))
@pytest.mark.parametrize("checkpointing", (False, True))
def test_a_borrowed_base_gives_gradients_to_adapters_and_is_put_back(family, checkpointing, loaded):
    backend = StandaloneBackend(loaded[family].parts, CPU, FP32)
    components = backend.components()
    assert list(components) == (["unet", "te1", "te2"] if family == "sdxl" else ["unet", "te"])
    next(backend.unet.parameters()).requires_grad_(True)
    backend.unet.train()
    backend.set_checkpointing(checkpointing)
    before, state = predict(backend).detach(), _state(components)
    adapter = Adapter.create(components, dict.fromkeys(components), rank=2, alpha=2.0)
    for layer in adapter.layers.values():
        torch.nn.init.normal_(layer.up, std=0.02)
    with backend.borrow(), adapter.attached(components):
        assert not any(p.requires_grad for module in components.values() for p in module.parameters())
        cond = backend.encode_text([PROMPT, "a dog"], grad=True)
        size_B6 = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)
        out = backend.predict(torch.randn(2, 4, 16, 16), torch.tensor([1, 999]), cond, size_B6)
        out.square().mean().backward()
    for (component, path), layer in adapter.layers.items():
        # The last block of an SDXL encoder comes after the states that are used; te1 has no pooled output either.
        unused = family == "sdxl" and component == "te1" and ".layers.1." in f".{path}"
        assert unused or (layer.down.grad is not None and layer.down.grad.abs().sum() > 0), (component, path)
    assert _state(components) == state
    assert torch.equal(predict(backend), before)
    backend.unet.requires_grad_(False).eval()


def _state(components) -> list:
    """Everything about the modules that borrowing could leave changed; a parameter's version counts writes to it."""
    return [(name, path, sorted(part.__dict__), part.training,
             [(n, id(p), p.requires_grad, p._version) for n, p in part.named_parameters(recurse=False)])
            for name, module in components.items() for path, part in module.named_modules()]


def test_checkpointing_changes_no_gradient(backend):
    components = backend.components()
    grads = []
    for on in (False, True):
        backend.set_checkpointing(on)
        adapter = Adapter.create(components, {"unet": None, "te": None}, rank=2, alpha=2.0)
        for layer in adapter.layers.values():
            torch.nn.init.constant_(layer.up, 0.01)
        with backend.borrow(), adapter.attached(components):
            z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
            backend.predict(z, torch.tensor([10]), backend.encode_text(["x"], grad=True), torch.zeros(1, 6)).sum().backward()
        grads.append([layer.down.grad for layer in adapter.layers.values()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_an_error_while_borrowed_puts_everything_back(backend):
    state = _state(backend.components())
    with pytest.raises(RuntimeError, match="inside"):
        with backend.borrow():
            backend.set_checkpointing(True)
            raise RuntimeError("inside")
    assert _state(backend.components()) == state


def test_text_without_grad_has_none_and_a_cut_prompt_is_named_once(backend, caplog):
    long = "word " * 100
    assert backend.token_count("a cat") == (4, 77) and backend.token_count(long) == (102, 77)
    with caplog.at_level(logging.WARNING):
        cond = backend.encode_text(["a cat", long])
        backend.encode_text([long])
    assert cond["hidden_BLD"].shape == (2, 77, 32) and not cond["hidden_BLD"].requires_grad
    assert len([r for r in caplog.records if "cut off" in r.getMessage()]) == 1 and "102 tokens" in caplog.text


def test_names_of_layers_in_files(loaded):
    sd15, sdxl = loaded["sd15"], loaded["sdxl"]
    query = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert sd15.lora_key("unet", query) == "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    assert sdxl.lora_key("unet", query) == "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    path = next(p for p, _ in sdxl.components()["te2"].named_modules() if p.endswith("layers.0.self_attn.q_proj"))
    assert sdxl.lora_key("te2", path) == "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    path = next(p for p, _ in sd15.components()["te"].named_modules() if p.endswith("layers.1.mlp.fc1"))
    assert sd15.lora_key("te", path) == "lora_te_text_model_encoder_layers_1_mlp_fc1"


def test_hashes_name_the_files_and_the_weights(files, folders, loaded, tmp_path):
    assert backend_of_file(files["sd15"], "sd15").base_hash == hashlib.sha256(files["sd15"].read_bytes()).hexdigest()
    copied = shutil.copytree(folders["sd15"], tmp_path / "copy")
    first, same = loaded["sd15"], load_base(str(copied), device="cpu")
    assert (first.base_hash, first.encoder_id, first.text_id) == (same.base_hash, same.encoder_id, same.text_id)
    file = copied / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["post_quant_conv.bias"] = weights["post_quant_conv.bias"] + 1
    save_file(weights, file, {"format": "pt"})
    other = load_base(str(copied), device="cpu")
    assert other.base_hash != first.base_hash and other.encoder_id != first.encoder_id and other.text_id == first.text_id


@pytest.mark.parametrize("name", ("model.ckpt", "model.pt", "MODEL.CKPT", "pytorch_model.bin"))
def test_pickles_are_refused_with_the_reason(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match="pickle, which can run any code"):
        load_base(str(tmp_path / name), device="cpu")


def test_a_wrong_path_names_the_nearest(tmp_path):
    (tmp_path / "my_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"does not exist; did you mean .*my_model\.safetensors\?"):
        load_base(str(tmp_path / "my_modle.safetensors"), device="cpu")
    with pytest.raises(ValueError, match="there is no folder"):
        load_base(str(tmp_path / "nowhere" / "x.safetensors"), device="cpu")
    with pytest.raises(ValueError, match=r"without model_index.json.*did you mean .*my_model\.safetensors"):
        load_base(str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="not a complete .safetensors file"):
        load_base(str(tmp_path / "my_model.safetensors"), device="cpu")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="not a .safetensors file"):
        load_base(str(tmp_path / "x.gguf"), device="cpu")


def test_broken_folders_are_turned_down(folders, tmp_path):
    folder = shutil.copytree(folders["sd15"], tmp_path / "base")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="unet cannot be loaded"):
        load_base(str(folder), device="cpu")
    file.unlink()
    with pytest.raises(ValueError, match="unet holds no weights"):
        load_base(str(folder), device="cpu")
    file.with_suffix(".bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match="only pickles"):
        load_base(str(folder), device="cpu")
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}')
    with pytest.raises(ValueError, match="is a FluxPipeline"):
        load_base(str(folder), device="cpu")
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_base(str(folder), device="cpu")


def test_a_folder_with_the_half_precision_variant_alone(folders, loaded, tmp_path):
    folder = shutil.copytree(folders["sd15"], tmp_path / "base")
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert torch.equal(predict(load_base(str(folder), device="cpu")), predict(loaded["sd15"]))


def test_devices_and_interruption(backend):
    assert pick_device("cpu").type == "cpu" and pick_device("auto").type in ("cuda", "xpu", "mps", "cpu")
    with pytest.raises(ValueError, match="not available|not a device"):
        pick_device("cuda:banana" if torch.cuda.is_available() else "cuda")
    with pytest.raises(ValueError, match="not available"):
        pick_device("toaster")
    assert not backend.interrupted()
    backend.interrupt()
    assert backend.interrupted()


@pytest.mark.skipif(not diffusers.utils.USE_PEFT_BACKEND, reason="diffusers needs peft and transformers 4.34 for this")
@pytest.mark.parametrize("family", ("sd15", "sdxl"))
@pytest.mark.parametrize("form", ("kohya", "peft"))
def test_lora_files_draw_the_same_picture_here_and_in_diffusers(family, form, loaded, pipelines, tmp_path):
    backend = loaded[family]
    components = backend.components()
    trained = Adapter.create(components, dict.fromkeys(components), rank=4, alpha=2.0)
    for layer in trained.layers.values():
        torch.nn.init.normal_(layer.up, std=0.2)
    file = tmp_path / "my_lora.safetensors"
    save_lora(file, to_file_weights(trained.weights(), backend.lora_key), {}, dtype="fp32")
    if form == "peft":
        file = export_file(file, "peft", tmp_path / "pytorch_lora_weights.safetensors")
    weights, _ = load_lora(file)
    adapter = Adapter.from_weights(components, to_layers(weights, backend.lora_key, components))
    with adapter.attached(components):
        ours = backend.sample(REQUEST)[0]
    pipelines[family].load_lora_weights(str(tmp_path), weight_name=file.name)
    wanted = draw_with(pipelines[family])
    pipelines[family].unload_lora_weights()
    assert np.abs(pixels(ours) - pixels(wanted)).max() <= 1
    assert np.abs(pixels(ours) - pixels(backend.sample(REQUEST)[0])).max() > 10, "the LoRA must matter"


def test_attention_in_bfloat16_leaves_the_memory_alone():
    """torch 2.1's fast kernel ends the process here, when it is used with two threads."""
    code = """
import sys
sys.path.insert(0, "tests")
import conftest, torch
from diffusers.models.attention_processor import Attention
from hotlora.trainer.frozen import borrowed
from hotlora.trainer.hosts.standalone import _forward_for
torch.set_num_threads(2)
layer = Attention(query_dim=64, cross_attention_dim=64, heads=8, dim_head=32)
with borrowed(layer, _forward_for):
    for _ in range(10):
        x_BLD, text_BLD = torch.randn(4, 576, 64, requires_grad=True), torch.randn(4, 77, 64, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x_BLD, encoder_hidden_states=text_BLD).float().square().sum().backward()
        assert torch.isfinite(x_BLD.grad).all() and torch.isfinite(text_BLD.grad).all()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "2"})
    assert done.stdout.strip() == "done" and done.returncode == 0, done.stderr


def test_a_picture_that_does_not_fit_is_decoded_with_room_and_then_in_tiles(backend, monkeypatch, caplog):
    request = SampleRequest(("a red star",), seed=1, steps=2)
    [expected] = backend.sample(request)
    decode, tiled = backend.vae.decode, []

    def full(z_BCHW):
        tiled.append(backend.vae.use_tiling)
        if len(tiled) < 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory, on purpose")
        return decode(z_BCHW)

    monkeypatch.setattr(backend.vae, "decode", full)
    monkeypatch.setattr(backend, "_tiles", False)
    monkeypatch.setattr(standalone, "TILE", 16)
    [picture] = backend.sample(request)
    assert tiled == [False, False, True] and not backend.vae.use_tiling and "tile by tile" in caplog.text
    difference = np.abs(np.asarray(picture, float) - np.asarray(expected, float))
    assert picture.size == expected.size and 0 < difference.mean() < 12, "tiles do not see beyond their edges"


def test_drawing_with_one_part_at_a_time_draws_the_same(backend):
    request = SampleRequest(("a red star", "a blue cube"), seed=1, steps=2)
    assert [np.asarray(a).tolist() for a in draw(backend, request, sparing=True)] == [np.asarray(a).tolist() for a in backend.sample(request)]


def test_what_does_not_fit_in_any_way_is_the_allocators_error(backend, monkeypatch):
    def full(z_BCHW):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory, on purpose")

    monkeypatch.setattr(backend.vae, "decode", full)
    monkeypatch.setattr(backend, "_tiles", False)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        backend.sample(SampleRequest(("a red star",), seed=1, steps=1))
    assert not backend.vae.use_tiling
