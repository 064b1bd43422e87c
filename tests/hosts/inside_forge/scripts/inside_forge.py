"""An extension for tests: looks at Forge or reForge from inside, and does there what no request can do.

    POST /inside/state       what a run must leave as it was
    POST /inside/failing     let the next steps fail: {"error": "...", "after": steps, "times": steps that fail}
    POST /inside/alike       what the denoiser says with a file attached as in training, against the host's own way: {"name": "...", "weight": w}
    POST /inside/gradients   our gradients of one batch against plain autograd picture by picture; {"half": true}: weights in half precision
                             under autocast, as on a GPU; {"swapped": true}: weights that Forge casts at each use, as where they do not fit
    POST /inside/text_id     what keys the cache of captions
    POST /inside/borrowing   milliseconds that borrowing takes: {"times": n}
"""
import hashlib
import json
import sys
import time
from contextlib import contextmanager

import torch
from fastapi import Body
from modules import call_queue, prompt_parser, script_callbacks, sd_models, shared

REFORGE = "ldm_patched" in sys.modules
if REFORGE:
    import ldm_patched.ldm.modules.attention as attention_module
    from ldm_patched.modules import model_management as memory_management

    parsing, layer_norm, ATTENTION, NOTED, CAST = prompt_parser, None, ("optimized_attention", "optimized_attention_masked"), {}, "ldm_patched_cast_weights"
else:
    import backend.nn.unet as attention_module
    from backend import memory_management, operations
    from backend.text_processing import classic_engine, parsing

    layer_norm, ATTENTION, NOTED, CAST = operations.ForgeOperations.LayerNorm, ("attention_function",), classic_engine.last_extra_generation_params, "parameters_manual_cast"


def model():
    return sd_models.model_data.sd_model


def kind_of_ours():
    if REFORGE:
        from hotlora.trainer.hosts.reforge import ReforgeBackend as Ours
    else:
        from hotlora.trainer.hosts.forge import ForgeBackend as Ours

    return Ours


def ours():
    return kind_of_ours()(shared.opts.hotlora_prediction)


def state() -> dict:
    found = model()
    weights, facts = hashlib.sha256(), []
    parts = {"unet": found.forge_objects_original.unet.model, "clip": found.forge_objects_original.clip.cond_stage_model,
             "vae": found.forge_objects_original.vae.first_stage_model}
    for kind, whole in parts.items():
        for path, part in whole.named_modules():
            facts.append((kind, path, part.training, "forward" in part.__dict__, getattr(part, CAST, None)))
            for name, x in {**part._parameters, **part._buffers}.items():
                if x is not None:
                    facts.append((kind, path, name, type(x).__name__, x.requires_grad, str(x.dtype), str(x.device), x.is_inference(), id(x)))
                    weights.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    unet = found.forge_objects_original.unet.model
    prediction = type(unet.model_sampling).__mro__[2].__name__ if REFORGE else unet.predictor.prediction_type
    return {
        "weights": weights.hexdigest(), "modules": hashlib.sha256(repr(facts).encode()).hexdigest(), "model": id(found),
        "objects": [id(found.forge_objects), *(id(x) for objects in (found.forge_objects, found.forge_objects_original,
                                                                     found.forge_objects_after_applying_lora) for x in (objects.unet, objects.clip, objects.vae))],
        "vae options": sorted(found.forge_objects_original.vae.patcher.model_options),
        "attention": [getattr(attention_module, name).__name__ for name in ATTENTION], "prediction": prediction,
        "vae": getattr(getattr(found.forge_objects_original.vae.first_stage_model, "regularization", None), "sample", None),
        "options": hashlib.sha256(json.dumps(shared.opts.data, sort_keys=True, default=str).encode()).hexdigest(),
        "noted": dict(NOTED), "grad": torch.is_grad_enabled(),
        "progress": {key: str(value) for key, value in shared.state.__dict__.items() if key not in ("time_start", "job_timestamp")}}


def failing(error: str, after: int, times: int = 10**9) -> None:
    kind, kinds = kind_of_ours(), {"memory": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9999 bytes."), "other": KeyError("a fault of a test")}
    if not hasattr(kind, "sound"):
        kind.sound = kind.predict
    left = [after]

    def predict(self, *args):
        out = kind.sound(self, *args)
        left[0] -= 1
        if -times <= left[0] < 0:
            raise kinds[error]
        return out

    kind.predict = predict if error else kind.sound


def alike(name: str, weight: float) -> dict:
    """How far apart the two are, against what the file changes."""
    from hotlora.trainer.adapter import Adapter
    from hotlora.trainer.lora_file import load_lora, to_layers

    networks, held, own = sys.modules["networks"], model(), ours()
    given = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    with call_queue.queue_lock, torch.inference_mode():
        more = conditioning("a photo of sks", torch.zeros(6))
        said, layers = {}, 0
        for what, names in (("plain", []), ("theirs", [name]), ("", [])):
            held.forge_objects = held.forge_objects_original.shallow_copy()
            networks.load_networks(names, [weight] * len(names), [weight] * len(names), [None] * len(names))
            unet = held.forge_objects.unet
            memory_management.load_models_gpu([unet])
            layers = max(layers, len(unet.backup if REFORGE else unet.model.lora_loader.backup))
            said[what] = unet.model.diffusion_model(*given, transformer_options={}, **more).clone()
        file = networks.available_networks[name].filename
    adapter = Adapter.from_weights(own.components(), to_layers(load_lora(file)[0], own.lora_key, own.components()))
    adapter.set_multiplier(unet=weight)
    with own.borrow(), adapter.attached(own.components()), torch.no_grad():
        out = own.predict(*given, own.encode_text(["a photo of sks"]), torch.zeros(1, 6))
    theirs, plain = said["theirs"].clone(), said["plain"].clone()
    return {"difference": ((out - theirs).norm() / (out - plain).norm()).item(), "layers": layers, "ours": len(adapter.layers)}


@contextmanager
def other_weights(half: bool, swapped: bool):
    """As Forge holds them on other machines: in half precision, or to be cast at each use."""
    unet = ours().unet
    layers = [part for part in unet.modules() if hasattr(part, CAST)]
    before, casts = {id(p): p.data.clone() for p in unet.parameters()}, [getattr(part, CAST) for part in layers]
    with torch.inference_mode():
        if half:
            unet.half()
        for part in layers:
            setattr(part, CAST, getattr(part, CAST) or swapped)
    try:
        yield
    finally:
        with torch.inference_mode():
            unet.float()
            assert all(torch.equal(p, before[id(p)]) for p in unet.parameters() if id(p) in before)
            for part, cast in zip(layers, casts):
                setattr(part, CAST, cast)


def gradients(half: bool, checkpointing: bool) -> dict:
    from hotlora.trainer.adapter import Adapter
    from hotlora.trainer.config import TrainConfig
    from hotlora.trainer.objective import Objective

    own = ours()
    own.set_checkpointing(checkpointing)
    adapter = Adapter.create(own.components(), {"unet": None}, rank=4, alpha=2, conv_rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.up.normal_(0, 0.02, generator=generator)
    objective = Objective(TrainConfig(train_data_dir="x", min_snr_gamma=0), own.prediction)
    captions = ["a photo of sks", "a red star, on a mat, " * 30, "a (plain) [caption] BREAK with signs, " * 10, ""]
    buckets = [(8, 8), (8, 8), (8, 16), (8, 16)]
    pixels = [torch.rand(1, 3, 8 * h, 8 * w, generator=generator) * 2 - 1 for h, w in buckets]
    t_B = torch.tensor([700, 120, 400, 950])
    noise = [torch.randn(1, 4, h, w, generator=generator) for h, w in buckets]
    sizes = torch.tensor([[8 * h + 5.0, 8 * w + 9, 3, 4, 8 * h, 8 * w] for h, w in buckets])
    with own.borrow(), adapter.attached(own.components()):
        z = [own.encode_image(x) for x in pixels]
        losses = []
        for rows in ([0, 1], [2, 3]):
            z0, eps, t = torch.cat([z[i] for i in rows]), torch.cat([noise[i] for i in rows]), t_B[rows]
            # caption by caption and then together, as the cache of a run does
            texts = [{key: x[0] for key, x in own.encode_text([captions[i]]).items()} for i in rows]
            assert len({len(text["hidden_BLD"]) for text in texts}) == 2, "both batches hold captions of different lengths"
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                out = own.predict(objective.noisy(z0, eps, t), objective.model_timestep(t), own.batch_text(texts), sizes[rows])
            losses.append(objective.loss(out, objective.target(z0, eps, t), t))
        loss_B = torch.cat(losses)
        loss_B.sum().backward()
    found = {path: (layer.down.grad, layer.up.grad) for (_, path), layer in adapter.layers.items()}
    with call_queue.queue_lock:
        reference_B, theirs = reference(adapter, pixels, captions, noise, t_B, sizes, own.prediction.kind)
    error = max(((a - b).norm() / b.norm()).item() for path in found for a, b in zip(found[path], theirs[path]))
    return {"family": own.family, "kind": own.prediction.kind, "weights": str(own.dtype), "layers": len(found), "gradient_error": error,
            "loss_error": ((loss_B.detach() - reference_B).abs() / reference_B).max().item()}


def reference(adapter, pixels, captions, noise, t_B, sizes, kind) -> tuple:
    """Losses and gradients by the host's own modules, with the merged weights in fp32 as plain tensors and attention written out."""
    held = model()
    unet, vae = held.forge_objects_original.unet.model.diffusion_model, held.forge_objects_original.vae.first_stage_model
    layers = {path: (layer.down.detach().clone().requires_grad_(), layer.up.detach().clone().requires_grad_(), layer.scale)
              for (_, path), layer in adapter.layers.items()}
    modules = dict(unet.named_modules())
    bare = {name: x.detach().float().clone() for name, x in unet.named_parameters()}
    frozen = {path: modules[path].weight.detach().float().clone() for path in layers}
    whole = held.forge_objects_original.unet.model
    a_T = 1 / (1 + whole.model_sampling.sigmas.clone().float() ** 2) if REFORGE else whole.predictor.alphas_cumprod.float().clone()
    losses = []
    for i, caption in enumerate(captions):
        merged = {**bare, **{f"{path}.weight": frozen[path] + scale * (up.flatten(1) @ down.flatten(1)).view_as(frozen[path])
                  for path, (down, up, scale) in layers.items()}}
        with torch.inference_mode():
            x = pixels[i].to(next(vae.parameters()).dtype)
            z0 = whole.process_latent_in(mean_of(vae, x)) if REFORGE else vae.process_in(vae.encode(x, lambda posterior: posterior.mean))
            text = caption.replace("(", "\\(").replace(")", "\\)").replace("[", "\\[").replace("]", "\\]")
            given = with_plain_break(lambda: conditioning(text, sizes[i]))
        z0, given = z0.clone().float(), {key: value.clone().float() for key, value in given.items()}
        a = a_T[t_B[i]]
        x_t = a.sqrt() * z0 + (1 - a).sqrt() * noise[i]
        target = noise[i] if kind == "eps" else a.sqrt() * noise[i] - (1 - a).sqrt() * z0
        with plain_layers():
            out = torch.func.functional_call(unet, merged, (x_t, t_B[i:i + 1].float()), {**given, "transformer_options": {}})
        loss = (out - target).square().mean()
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses), {path: (down.grad, up.grad) for path, (down, up, _) in layers.items()}


def mean_of(vae, x):
    """The first half of what reForge's autoencoder says about its posterior."""
    found = vae.encoder(x)
    return (vae.quant_conv(found) if hasattr(vae, "quant_conv") else found).chunk(2, 1)[0]


@contextmanager
def plain_layers():
    """Attention written out, and norms that autograd can follow: a block adds in place to what they have read."""
    chosen = {name: getattr(attention_module, name) for name in ATTENTION}
    norm = layer_norm and layer_norm.forward

    def attention(q, k, v, heads, mask=None, **_):
        q, k, v = (x.view(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    for name in ATTENTION:
        setattr(attention_module, name, attention)
    if layer_norm:
        layer_norm.forward = lambda self, x: torch.nn.functional.layer_norm(x.clone(), self.normalized_shape, self.weight, self.bias, self.eps)
    try:
        yield
    finally:
        for name, function in chosen.items():
            setattr(attention_module, name, function)
        if layer_norm:
            layer_norm.forward = norm


def conditioning(text: str, sizes) -> dict:
    held = model()
    if not REFORGE:
        held.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))
    before, held.forge_objects = held.forge_objects, held.forge_objects_original
    try:
        found = held.get_learned_conditioning(prompt_parser.SdConditioning([text]))
    finally:
        held.forge_objects = before
    if not held.is_sdxl:
        return {"context": found}
    pooled, embedder = found["vector"][:, :-6 * 256], held.forge_objects_original.unet.model.embedder if REFORGE else held.embedder
    return {"context": found["crossattn"], "y": torch.cat([pooled, embedder(sizes.float()).reshape(1, -1).to(pooled)], 1)}


def with_plain_break(make):
    """BREAK is a command in a prompt, for which it has no sign, and a word in a caption."""
    former, parsing.re_break = parsing.re_break, parsing.re.compile("(?!)")
    try:
        return make()
    finally:
        parsing.re_break = former


def borrowing(times: int) -> dict:
    own, spent = ours(), []
    for _ in range(times):
        began = time.perf_counter()
        with own.borrow():
            pass
        spent.append(1000 * (time.perf_counter() - began))
    return {"milliseconds": sorted(spent)[times // 2]}


def routes(_demo, app) -> None:
    def look() -> dict:
        with call_queue.queue_lock:
            return state()

    def fail(error: str = Body(""), after: int = Body(0), times: int = Body(10**9)) -> None:
        failing(error, after, times)

    def compare_ways(name: str = Body(...), weight: float = Body(...)) -> dict:
        return alike(name, weight)

    def compare(half: bool = Body(False), swapped: bool = Body(False), checkpointing: bool = Body(False)) -> dict:
        if not half and not swapped:
            return gradients(False, checkpointing)
        with other_weights(half, swapped):
            return gradients(half, checkpointing)

    def text_id() -> str:
        return ours().text_id

    def borrow(times: int = Body(5, embed=True)) -> dict:
        return borrowing(times)

    for name, answer in (("state", look), ("failing", fail), ("alike", compare_ways), ("gradients", compare), ("text_id", text_id), ("borrowing", borrow)):
        app.add_api_route(f"/inside/{name}", answer, methods=["POST"])


script_callbacks.on_app_started(routes)
