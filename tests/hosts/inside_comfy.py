"""Runs in ComfyUI's Python: gradients of one batch of ours, against plain autograd picture by picture on merged fp32 weights.

    python tests/hosts/inside_comfy.py COMFYUI_DIR CHECKPOINT [--fp8_e4m3fn-unet ...] [v | flow]

`v` and `flow` put ComfyUI's own ModelSamplingDiscrete or ModelSamplingSD3 upstream, for a model that predicts v or a flow.

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


def main() -> None:
    package()
    from hotlora.bench.comfy_host import enter, load

    checkpoint, arguments = Path(sys.argv[2]), sys.argv[3:]
    enter(Path(sys.argv[1]), "--cpu", *(argument for argument in arguments if argument not in ("v", "flow")))
    logging.disable(logging.WARNING)
    import torch

    from hotlora.trainer.adapter import Adapter
    from hotlora.trainer.config import TrainConfig
    from hotlora.trainer.hosts.comfy import ComfyBackend
    from hotlora.trainer.objective import Objective

    model, clip, vae = load(checkpoint)
    if "v" in arguments:
        from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

        model = ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    if "flow" in arguments:
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        model = ModelSamplingSD3().patch(model, 3.0)[0]
    backend = ComfyBackend(model, clip, vae)
    before = snapshot(backend.unet)
    adapter = Adapter.create(backend.components(), {"unet": None}, rank=4, alpha=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.up.normal_(0, 0.02, generator=generator)
    objective = Objective(TrainConfig(train_data_dir="x", min_snr_gamma=0), backend.prediction)
    captions = ["a photo of sks", "a red star, " * 40, "", "猫 on a mat"]
    buckets = [(8, 8), (8, 8), (6, 10), (6, 10)]
    pixels = [torch.rand(1, 3, 8 * h, 8 * w, generator=generator) * 2 - 1 for h, w in buckets]
    t_B = torch.tensor([700, 120, 400, 950]) if backend.prediction.kind != "flow" else torch.tensor([0.7, 0.12, 0.4, 0.95])
    noise = [torch.randn(1, backend.latent_channels, h, w, generator=generator) for h, w in buckets]
    sizes = torch.tensor([[8 * h + 5.0, 8 * w + 9, 3, 4, 8 * h, 8 * w] for h, w in buckets])

    with backend.borrow(), adapter.attached(backend.components()):
        z = [backend.encode_image(x) for x in pixels]
        losses = []
        for rows in ([0, 1], [2, 3]):
            z0, eps, t = torch.cat([z[i] for i in rows]), torch.cat([noise[i] for i in rows]), t_B[rows]
            out = backend.predict(objective.noisy(z0, eps, t), objective.model_timestep(t), backend.encode_text([captions[i] for i in rows]), sizes[rows])
            losses.append(objective.loss(out, objective.target(z0, eps, t), t))
        loss_B = torch.cat(losses)
        loss_B.sum().backward()
    ours = {key: (layer.down.grad.clone(), layer.up.grad.clone()) for key, layer in adapter.layers.items()}
    restored = snapshot(backend.unet)
    same = before.keys() == restored.keys() and all(before[key] == restored[key] for key in before)

    reference_B, theirs = reference(model, clip, vae, adapter, pixels, captions, noise, t_B, sizes, backend)
    error = max(((a - b).norm() / b.norm()).item() for key in ours for a, b in zip(ours[key], theirs[key]))
    print(json.dumps({"family": backend.family, "kind": backend.prediction.kind, "weights": str(before["first"]), "restored": same, "gradient_error": error,
                      "layers": len(ours), "loss_error": ((loss_B.detach() - reference_B).abs() / reference_B).max().item()}))


def snapshot(unet) -> dict:
    """What must be the same after a run: identity and flags of parameters, own forwards, modes."""
    found = {"first": str(next(iter(unet.parameters())).dtype)}
    for name, part in unet.named_modules():
        found[name] = (part.training, part.__dict__.get("forward"), *((key, id(x), x.requires_grad, x.is_inference(), x.data_ptr()) for key, x in part._parameters.items() if x is not None))
    return found


def reference(model, clip, vae, adapter, pixels, captions, noise, t_B, sizes, backend):
    """Losses and gradients, one picture at a time, on a plain fp32 copy of the denoiser."""
    import copy

    import comfy.model_management
    import torch

    with torch.inference_mode(False):
        base = copy.copy(model.model)
        object.__setattr__(base, "_modules", dict(model.model._modules))
        unet = copy.deepcopy(plain(model.model.diffusion_model))
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
            latent, cond, pooled = latent.float().clone(), cond.float().clone(), pooled.float().clone()
            z0 = base.process_latent_in(latent)
            sigma = sampling.sigmas[t_B[i:i + 1]].clone() if t_B.dtype == torch.int64 else t_B[i:i + 1]
            x_t = sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise[i].clone(), z0, False)
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
        return torch.stack(losses), {("unet", path): (down.grad, up.grad) for path, (down, up, _) in layers.items()}


def plain(unet):
    """The denoiser with normal fp32 parameters and without the host's casting."""
    import torch
    from torch import nn

    for part in unet.modules():
        for name, x in list(part._parameters.items()):
            if x is not None:
                part._parameters[name] = nn.Parameter(torch.tensor(x.float().tolist()) if x.numel() < 8 else torch.from_numpy(x.float().numpy().copy()), requires_grad=False)
        if hasattr(part, "comfy_cast_weights"):
            part.comfy_cast_weights = False
    return unet


if __name__ == "__main__":
    main()
