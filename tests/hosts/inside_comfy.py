"""Runs in ComfyUI's Python: gradients of one batch of ours, against plain autograd picture by picture on merged fp32 weights.

    python tests/hosts/inside_comfy.py COMFYUI_DIR CHECKPOINT [--fp8_e4m3fn-unet ...] [v | flow] [upstream] [streamed] [evicted] [gpu] [dynamic] [squeezed] [half] [dora] [captions]

`v` and `flow` put ComfyUI's own ModelSamplingDiscrete or ModelSamplingSD3 upstream, for a model that predicts v or a flow.
`upstream` puts a LoRA and changed norms upstream. `streamed` and `evicted` are what a device with little memory does, see `scarce_memory`.
`gpu` runs it on the GPU; `dynamic` with ComfyUI's dynamic memory, its default on NVIDIA, and `squeezed` with next to no memory for that.
`half` computes in float16, which the host does with weights of float16 (`--fp16-unet`) on a GPU alone, and borrows twice.
`dora` compares what the denoiser says with a DoRA attached and with its file through the stock loader, and nothing else.
`captions` compares what captions with signs of a prompt become with the same text straight through CLIP's tokenizer, and nothing else.

The reference goes another way in every part: the host's own noise_scaling and apply_model, the loss in x0 with the weight
that makes it the native one, and weights W + s B A as plain tensors. Prints one JSON object.
"""
from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def package() -> None:
    spec = importlib.util.spec_from_file_location("hotlora_bootstrap", ROOT / "__init__.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


OPTIONS = ("v", "flow", "upstream", "streamed", "evicted", "gpu", "dynamic", "squeezed", "half", "dora", "captions")


def main() -> None:
    package()
    from hotlora.bench.comfy_host import enter, load, use_dynamic_vram

    checkpoint, arguments = Path(sys.argv[2]), sys.argv[3:]
    enter(Path(sys.argv[1]), "--deterministic" if "gpu" in arguments else "--cpu", *(argument for argument in arguments if argument not in OPTIONS))
    logging.disable(logging.WARNING)
    if "dynamic" in arguments:
        use_dynamic_vram(1 << 50 if "squeezed" in arguments else 0)
    import torch

    torch.backends.cudnn.allow_tf32 = False

    from hotlora.tests.hosts.scarce_memory import CALLS, evict_when_encoding, hand_out_in_one_buffer, load_partially
    from hotlora.trainer.adapter import Adapter
    from hotlora.trainer.config import TrainConfig
    from hotlora.trainer.hosts.comfy import ComfyBackend
    from hotlora.trainer.objective import Objective

    model, clip, vae = load(checkpoint)
    if "dora" in arguments:
        print(json.dumps(as_the_host_does(model, clip, vae)))
        return
    if "captions" in arguments:
        print(json.dumps(as_written(model, clip, vae)))
        return
    bare, changes = model, {}
    if "upstream" in arguments:
        bare = load(checkpoint)[0]
        model, changes = with_upstream(model)
    if "v" in arguments:
        from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

        model = ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    if "flow" in arguments:
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        model = ModelSamplingSD3().patch(model, 3.0)[0]
    if "streamed" in arguments:
        load_partially(64 << 20)
        hand_out_in_one_buffer()
    if "half" in arguments:
        model.model.manual_cast_dtype = None
    hashes = [ComfyBackend(bare, clip, vae).base_hash]
    drawn = drawing(model, clip)
    hashes.append(ComfyBackend(model, clip, vae).base_hash)
    backend = ComfyBackend(model, clip, vae)
    before = snapshot(backend.unet)
    adapter = Adapter.create(backend.components(), {"unet": None}, rank=4, alpha=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.up.copy_(torch.randn(layer.up.shape, generator=generator) * 0.02)
    adapter.to(backend.device)
    objective = Objective(TrainConfig(train_data_dir="x", min_snr_gamma=0), backend.prediction)
    captions = ["a photo of sks", "a red star, " * 40, "", "猫 on a mat, " * 20]
    buckets = [(8, 8), (8, 8), (6, 10), (6, 10)]
    pixels = [torch.rand(1, 3, 8 * h, 8 * w, generator=generator) * 2 - 1 for h, w in buckets]
    t_B = torch.tensor([700, 120, 400, 950]) if backend.prediction.kind != "flow" else torch.tensor([0.7, 0.12, 0.4, 0.95])
    noise = [torch.randn(1, backend.latent_channels, h, w, generator=generator) for h, w in buckets]
    sizes = torch.tensor([[8 * h + 5.0, 8 * w + 9, 3, 4, 8 * h, 8 * w] for h, w in buckets])
    if "evicted" in arguments:
        evict_when_encoding(clip, backend.model)

    with backend.borrow(), adapter.attached(backend.components()):
        z = [backend.encode_image(x) for x in pixels]
        losses = []
        for rows in ([0, 1], [2, 3]):
            z0, eps, t = torch.cat([z[i] for i in rows]), torch.cat([noise[i] for i in rows]), t_B[rows]
            # caption by caption and then together, as the cache of a run does
            texts = [{key: x[0] for key, x in backend.encode_text([captions[i]]).items()} for i in rows]
            assert len({len(text["hidden_BLD"]) for text in texts}) == 2, "both batches hold captions of different lengths"
            eps, t = eps.to(z0.device), t.to(z0.device)
            conditions = {key: x.to(backend.device) for key, x in backend.batch_text(texts).items()}
            out = backend.predict(objective.noisy(z0, eps, t), objective.model_timestep(t), conditions, sizes[rows])
            losses.append(objective.loss(out, objective.target(z0, eps, t), t))
        loss_B = torch.cat(losses)
        loss_B.sum().backward()
        hashes.append(ComfyBackend(model, clip, vae).base_hash)
        computed = [str(backend.model.model.get_dtype_inference())]
    ours = {key: (layer.down.grad.cpu(), layer.up.grad.cpu()) for key, layer in adapter.layers.items()}
    restored = snapshot(backend.unet)
    # dynamic memory makes small tensors anew whenever it loads a model
    same = "evicted" in arguments or "dynamic" in arguments and loose(before) == loose(restored) or before.keys() == restored.keys() and all(before[key] == restored[key] for key in before)
    if "half" in arguments:
        # the next run, with nothing drawn between that would have made the host load the model for itself
        backend = ComfyBackend(model, clip, vae)
        with backend.borrow(), torch.no_grad():
            backend.predict(z0, objective.model_timestep(t), conditions, sizes[rows])
            computed.append(str(backend.model.model.get_dtype_inference()))
    redrawn = torch.equal(drawn, drawing(model, clip))

    reference_B, theirs = reference(model, bare, changes, clip, vae, adapter, pixels, captions, noise, t_B, sizes, backend)
    error = max(((a - b).norm() / b.norm()).item() for key in ours for a, b in zip(ours[key], theirs[key]))
    print(json.dumps({"family": backend.family, "kind": backend.prediction.kind, "weights": str(before["first"]), "restored": same, "redrawn": redrawn,
                      "gradient_error": error, "layers": len(ours), "computed": computed, "name": backend.name, "resolution": backend.resolution, "same_hash": len(set(hashes)) == 1, "loss_error": ((loss_B.detach().cpu() - reference_B).abs() / reference_B).max().item(),
                      "calls": CALLS}))


def as_the_host_does(model, clip, vae) -> dict:
    """How far apart they are, against what the DoRA changes at that strength."""
    import tempfile

    import comfy.sd
    import comfy.utils
    import torch

    from hotlora.trainer.adapter import Adapter
    from hotlora.trainer.hosts.comfy import ComfyBackend
    from hotlora.trainer.lora_file import save_lora, to_file_weights

    def said(backend, *adapters):
        with backend.borrow(), torch.no_grad():
            conditions = backend.encode_text(["a photo of sks"])
            for one in adapters:
                one.attach(backend.components())
            try:
                return backend.predict(z_BCHW, torch.tensor([500]), conditions, torch.tensor([[64.0, 64, 0, 0, 64, 64]]))
            finally:
                for one in adapters:
                    one.detach()

    generator = torch.Generator().manual_seed(0)
    z_BCHW = torch.randn(1, 4, 8, 8, generator=generator)
    backend = ComfyBackend(model, clip, vae)
    adapter = Adapter.create(backend.components(), {"unet": None}, rank=4, alpha=2, conv_rank=2, dora=True)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.up.normal_(0, 0.02, generator=generator)
            layer.dora_scale.mul_(1 + 0.05 * torch.randn(layer.dora_scale.shape, generator=generator))
    plain = said(backend)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        save_lora(Path(folder) / "dora.safetensors", to_file_weights(adapter.weights(), backend.lora_key), {}, "fp32")
        file = comfy.utils.load_torch_file(str(Path(folder) / "dora.safetensors"))
        for strength in (1.0, 0.5):
            adapter.set_multiplier(unet=strength)
            ours = said(backend, adapter)
            with torch.inference_mode():
                patched = comfy.sd.load_lora_for_models(model, clip, file, strength, 0)[0]
            theirs = said(ComfyBackend(patched, clip, vae))
            found[str(strength)] = ((ours - theirs).norm() / (ours - plain).norm()).item()
    return found


def as_written(model, clip, vae) -> dict:
    """How far apart they are, by caption, and whether the tokens are counted as many."""
    import torch

    from hotlora.trainer.hosts.comfy import ComfyBackend

    backend, found = ComfyBackend(model, clip, vae), {}
    for caption in ("a cat (fluffy)", "a cat (fluffy:1.4) ((soft))", r"hatsune miku \(vocaloid\)", "an open ( and a closing ) ) :)", "plain"):
        words = clip.tokenizer.clip_l.tokenizer(caption)["input_ids"]
        padded = [(token, 1.0) for token in words + words[-1:] * (77 - len(words))]
        with torch.inference_mode():
            [[hidden_1LD, _]] = clip.encode_from_tokens_scheduled({"l": [padded]}, show_pbar=False)
            ours_1LD = backend.encode_text([caption])["hidden_BLD"]
        found[caption] = (ours_1LD - hidden_1LD.float()).abs().max().item() + (backend.token_count(caption) != (77, 77))
    return found


def drawing(model, clip):
    """Latents that the host's own sampler makes."""
    import comfy.sample
    import torch

    with torch.inference_mode():
        cond = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of sks"), show_pbar=False)
        empty = torch.zeros(1, 4, 8, 8)
        return comfy.sample.sample(model, comfy.sample.prepare_noise(empty, 3), 2, 4.0, "euler", "normal", cond, cond, empty, disable_pbar=True, seed=3)


def with_upstream(model):
    """The model with a LoRA on linear and convolution layers and with changed norms, as the stock loader puts them on, and what that adds to each weight."""
    import comfy.sd
    import torch

    generator = torch.Generator().manual_seed(7)
    tensors, changes, strength = {}, {}, 0.7
    for path, layer in model.model.diffusion_model.named_modules():
        if getattr(layer, "weight", None) is None or list(layer.children()):
            continue
        shape = tuple(layer.weight.shape)
        if len(shape) == 1:
            tensors[f"diffusion_model.{path}.diff"] = 0.1 * torch.randn(shape, generator=generator)
            changes[f"{path}.weight"] = strength * tensors[f"diffusion_model.{path}.diff"]
        elif len(shape) == 2 and ("attn" in path or "emb_layers" in path) or len(shape) == 4 and "in_layers" in path:
            down = torch.randn(2, *shape[1:], generator=generator) / shape[1] ** 0.5
            up = 0.1 * torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=generator)
            tensors[f"diffusion_model.{path}.lora_down.weight"], tensors[f"diffusion_model.{path}.lora_up.weight"] = down, up
            changes[f"{path}.weight"] = strength * (up.flatten(1) @ down.flatten(1)).view(shape)
    assert len(changes) > 20
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)[0], changes


def snapshot(unet) -> dict:
    """What must be the same after a run: identity and flags of parameters, own forwards, modes."""
    found = {"first": str(next(iter(unet.parameters())).dtype)}
    for name, part in unet.named_modules():
        found[name] = (part.training, part.__dict__.get("forward"), *((key, id(x), x.requires_grad, x.is_inference(), x.data_ptr()) for key, x in part._parameters.items() if x is not None))
    return found


def loose(found: dict) -> dict:
    return {name: (one[:2], [(key, grad, inference) for key, _, grad, inference, _ in one[2:]]) for name, one in found.items() if name != "first"}


def reference(model, bare, changes, clip, vae, adapter, pixels, captions, noise, t_B, sizes, backend):
    """Losses and gradients, one picture at a time, on a plain fp32 copy of the denoiser of `bare` plus `changes`."""
    import copy

    import comfy.model_management
    import torch

    with torch.inference_mode(False):
        base = copy.copy(bare.model)
        object.__setattr__(base, "_modules", dict(bare.model._modules))
        device = bare.load_device
        unet = copy.deepcopy(plain(bare.model.diffusion_model)).to(device)
        for name, change in changes.items():
            unet.get_parameter(name).data += change.to(device)
        base._modules["diffusion_model"] = unet
        base.manual_cast_dtype = None
        unet.dtype = torch.float32
        base.current_patcher = None
        layers = {path: (layer.down.detach().clone().requires_grad_(), layer.up.detach().clone().requires_grad_(), layer.scale)
                  for (_, path), layer in adapter.layers.items()}
        modules = dict(unet.named_modules())
        frozen = {path: modules[path].weight.detach().clone() for path in layers}
        sampling, losses = model.get_model_object("model_sampling"), []
        for i, caption in enumerate(captions):
            for path, (down, up, scale) in layers.items():
                modules[path]._parameters.pop("weight", None)
                modules[path].__dict__["weight"] = frozen[path] + scale * (up.flatten(1) @ down.flatten(1)).view_as(frozen[path])
            with torch.inference_mode():
                latent = vae.encode(((pixels[i] + 1) / 2).movedim(1, -1))
                cond, pooled = clip.encode_from_tokens(clip.tokenize(caption), return_pooled=True)
            latent, cond, pooled = (x.float().clone().to(device) for x in (latent, cond, pooled))
            z0 = base.process_latent_in(latent)
            sigma = (sampling.sigmas.cpu()[t_B[i:i + 1]].clone() if t_B.dtype == torch.int64 else t_B[i:i + 1]).to(device)
            x_t = sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise[i].clone().to(device), z0, False)
            height, width, top, left, target_height, target_width = sizes[i].tolist()
            conds = base.extra_conds(cross_attn=cond, pooled_output=pooled, noise=x_t, device=x_t.device, width=width, height=height, crop_w=left,
                                     crop_h=top, target_width=target_width, target_height=target_height)
            given = {key: value.process_cond(batch_size=1, area=None).cond for key, value in conds.items()}
            x0 = base.apply_model(x_t, sigma, transformer_options={"cond_or_uncond": [0], "sigmas": sigma}, **given)
            s2 = sigma.item() ** 2
            weight = (s2 + 1) / s2 if backend.prediction.kind == "v" else 1 / s2
            loss = weight * (x0 - z0).square().mean()
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).cpu(), {("unet", path): (down.grad.cpu(), up.grad.cpu()) for path, (down, up, _) in layers.items()}


def plain(unet):
    """The denoiser with normal fp32 parameters and without the host's casting."""
    import torch
    from torch import nn

    for part in unet.modules():
        for name in [name for name in part.__dict__ if name.startswith(("_v", "_pin")) or name.endswith("_lowvram_function")]:
            del part.__dict__[name]
        for name, x in list(part._parameters.items()):
            if x is not None:
                x = x.cpu()
                x = x.dequantize() if hasattr(x, "dequantize") and type(x) is not nn.Parameter else x
                part._parameters[name] = nn.Parameter(torch.tensor(x.float().tolist()) if x.numel() < 8 else torch.from_numpy(x.detach().float().numpy().copy()), requires_grad=False)
        if hasattr(part, "comfy_cast_weights"):
            part.comfy_cast_weights = False
            part.weight_function, part.bias_function = [], []
            part.__dict__.pop("prev_comfy_cast_weights", None)
        if hasattr(part, "_full_precision_mm"):
            part._full_precision_mm = True
    return unet


if __name__ == "__main__":
    main()
