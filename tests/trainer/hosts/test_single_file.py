"""Single files in the original layout, against diffusers' own reading of them and open_clip's arithmetic."""
from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hotlora.trainer.backend import SampleRequest
from hotlora.trainer.hosts.single_file import predicts_noise
from hotlora.trainer.hosts.standalone import load_base

from tests import random_models
from tests.random_models import backend_of_file, predict

diffusers = pytest.importorskip("diffusers")
FAMILIES = ("sd15", "sd2", "sdxl")
PROMPT = "a photo of a cat, highly detailed!"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
CLIP_LAST = "cond_stage_model.transformer.text_model.final_layer_norm.bias"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_gives_what_diffusers_reads_from_it(family, files, folders):
    backend = backend_of_file(files[family], family)
    kind = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
    extra = {} if family == "sdxl" else {"safety_checker": None}
    theirs = kind.from_single_file(str(files[family]), config=str(folders[family]), local_files_only=True, **extra)
    assert set(theirs.unet.state_dict()) == set(backend.unet.state_dict())
    for ours, other in ((backend.unet, theirs.unet), (backend.vae, theirs.vae), (backend.parts.text_encoders[-1].module,
                        theirs.text_encoder_2 if family == "sdxl" else theirs.text_encoder)):
        other_weights = other.state_dict()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, other_weights[name]), name
    assert backend.family == family and backend.name == family
    assert backend.prediction.kind == ("v" if family == "sd2" else "eps")


def test_text_encoders_of_sd2_and_sdxl_are_those_of_open_clip(files):
    """Against open_clip's own arithmetic, written out: pre-norm blocks, fused q, k, v, causal mask, GELU."""
    sd2, sdxl = backend_of_file(files["sd2"], "sd2"), backend_of_file(files["sdxl"], "sdxl")
    norm = torch.nn.functional.layer_norm
    weights, prefix = load_file(files["sd2"]), "cond_stage_model.model."
    states = _open_clip_states(weights, prefix, sd2.parts.text_encoders[0].ids([PROMPT]))
    wanted = norm(states[-2], (32,), weights[prefix + "ln_final.weight"], weights[prefix + "ln_final.bias"])
    assert len([n for n in weights if n.endswith("ln_1.weight")]) == 3, "the file has a layer more than is used"
    torch.testing.assert_close(sd2.encode_text([PROMPT])["hidden_BLD"], wanted, atol=1e-5, rtol=1e-4)

    weights, prefix = load_file(files["sdxl"]), "conditioner.embedders.1.model."
    ids_BL = sdxl.parts.text_encoders[1].ids([PROMPT])
    states = _open_clip_states(weights, prefix, ids_BL)
    cond = sdxl.encode_text([PROMPT])
    torch.testing.assert_close(cond["hidden_BLD"][..., 32:], states[-2], atol=1e-5, rtol=1e-4)
    last = norm(states[-1], (48,), weights[prefix + "ln_final.weight"], weights[prefix + "ln_final.bias"])
    pooled = last[:, ids_BL[0].tolist().index(49407)] @ weights[prefix + "text_projection"]
    torch.testing.assert_close(cond["pooled_BD"], pooled, atol=1e-5, rtol=1e-4)


def _open_clip_states(weights: dict, prefix: str, ids_BL: torch.Tensor) -> list[torch.Tensor]:
    x = weights[prefix + "token_embedding.weight"][ids_BL] + weights[prefix + "positional_embedding"]
    states = [x]
    length, width, heads = x.shape[1], x.shape[2], 2
    mask = torch.full((length, length), float("-inf")).triu(1)
    layer = 0
    while f"{prefix}transformer.resblocks.{layer}.ln_1.weight" in weights:
        place = f"{prefix}transformer.resblocks.{layer}."
        w = {name[len(place):]: tensor for name, tensor in weights.items() if name.startswith(place)}
        y = torch.nn.functional.layer_norm(x, (width,), w["ln_1.weight"], w["ln_1.bias"])
        q, k, v = ((y @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]).view(1, length, 3, heads, width // heads).unbind(2))
        scores = torch.einsum("blhd,bmhd->bhlm", q, k) / (width // heads) ** 0.5 + mask
        y = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v).reshape(1, length, width)
        x = x + y @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
        y = torch.nn.functional.layer_norm(x, (width,), w["ln_2.weight"], w["ln_2.bias"])
        y = torch.nn.functional.gelu(y @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"])
        x = x + y @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
        states.append(x)
        layer += 1
    return states


@pytest.mark.parametrize("marks, kind, last_alpha", [
    ({}, "eps", 0.0047), ({"v_pred": torch.zeros(0)}, "v", 0.0047),
    ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, "v", 0.0)])
def test_marks_of_v_prediction_in_sdxl_files(marks, kind, last_alpha, tmp_path):
    random_models.write_checkpoint(tmp_path / "x.safetensors", random_models.tiny_shapes("sdxl"), extra=marks)
    prediction = backend_of_file(tmp_path / "x.safetensors", "sdxl").prediction
    assert prediction.kind == kind and prediction.alphas_cumprod[-1].item() == pytest.approx(last_alpha, abs=1e-4)


def test_an_sd2_file_without_marks_is_asked_what_it_predicts(tmp_path, caplog):
    random_models.write_checkpoint(tmp_path / "x.safetensors", random_models.tiny_shapes("sd2"))
    with caplog.at_level(logging.INFO):
        assert backend_of_file(tmp_path / "x.safetensors", "sd2").prediction.kind == "v"
    assert "does not say what it predicts" in caplog.text


@pytest.mark.parametrize("gain, noise", [(1.0, True), (-0.07, False)])
def test_the_question_tells_epsilon_from_v(gain, noise):
    """The best denoisers there are for pictures of unit variance: epsilon is the input itself, v is -x0, unknown at t = 999."""
    class Ideal(torch.nn.Module):
        config = {"in_channels": 4}

        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(gain))

        def forward(self, z, t, encoder_hidden_states):
            picture = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
            return type("Out", (), {"sample": self.gain * z + (0 if noise else -0.5) * picture})

    with torch.no_grad():
        assert predicts_noise(Ideal(), torch.zeros(1, 77, 8)) is noise


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float8_e4m3fn))
def test_weights_of_other_types_are_read(dtype, tmp_path):
    random_models.write_checkpoint(tmp_path / "half.safetensors", random_models.tiny_shapes("sd15"), dtype=dtype)
    backend = backend_of_file(tmp_path / "half.safetensors", "sd15")
    assert {p.dtype for p in backend.unet.parameters()} == {torch.float32} and predict(backend).isfinite().all()


def test_names_without_text_model_are_read(files, tmp_path):
    weights = {name.replace("transformer.text_model.", "transformer."): t for name, t in load_file(files["sd15"]).items()}
    save_file(weights, tmp_path / "merged.safetensors")
    merged, plain = (backend_of_file(file, "sd15") for file in (tmp_path / "merged.safetensors", files["sd15"]))
    assert torch.equal(predict(merged), predict(plain))


@pytest.mark.parametrize("weights, message", [
    ({"lora_unet_mid_block.lora_down.weight": (4, 4)}, "is a LoRA, not a base model"),
    ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "holds no Stable Diffusion denoiser"),
    ({FIRST: (320, 9, 3, 3)}, "inpainting"),
    ({FIRST: (320, 4, 3, 3)}, "holds no text encoder"),
    ({FIRST: (320, 4, 3, 3), "conditioner.embedders.0.model.ln_final.bias": (4,)}, "refiner"),
    ({FIRST: (320, 4, 3, 3), CLIP_LAST: (768,)}, r"lacks 6\d\d weights of the UNet"),
    ({FIRST: (32, 4, 3, 3), CLIP_LAST: (768,)}, "only the published shapes"),
])
def test_other_files_are_turned_down_with_what_they_are(weights, message, tmp_path):
    save_file({name: torch.zeros(shape) for name, shape in weights.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        load_base(str(tmp_path / "x.safetensors"), device="cpu")


@pytest.mark.slow
def test_a_full_size_sd15_file(tmp_path):
    shapes = random_models.full_shapes("sd15")
    random_models.write_checkpoint(tmp_path / "sd15.safetensors", shapes, dtype=torch.float16)
    backend = load_base(str(tmp_path / "sd15.safetensors"), device="cpu")
    parameters = sum(p.numel() for m in (*backend.components().values(), backend.vae) for p in m.parameters())
    assert parameters == 1_066_235_307 and backend.resolution == 512
    picture = backend.sample(SampleRequest((PROMPT,), width=64, height=64, steps=2))[0]
    assert picture.size == (64, 64) and np.asarray(picture).std() > 1
