"""An extension for tests: looks at the webui from inside, and does there what no request can do.

    POST /inside/state       what a run must leave as it was
    POST /inside/failing     let the next steps fail: {"error": "...", "after": steps, "times": steps that fail}
    POST /inside/waiting     for each picture since the last call: the training's step when it was asked for and when it was begun
    POST /inside/baked       norms of what a prompt's LoRAs change in the weights: {"tags": [[name, weight], ...]}
    POST /inside/alike       what the denoiser says with a file attached as in training, against the host's own way: {"name": "...", "weight": w}
    POST /inside/gradients   our gradients of one batch against plain autograd picture by picture; {"half": true}: the denoiser in half
                             precision under autocast, as on a GPU
    POST /inside/text_id     what keys the cache of captions
    POST /inside/borrowing   milliseconds that borrowing takes: {"times": n}
"""
import hashlib
import json
import sys
import threading
import time
from contextlib import contextmanager

import k_diffusion.sampling
import ldm.modules.attention
import ldm.modules.distributions.distributions
import sgm.modules.attention
import sgm.modules.distributions.distributions
import torch
from fastapi import Body
from modules import call_queue, devices, script_callbacks, sd_hijack, sd_models, sd_unet, shared
from modules.hypernetworks import hypernetwork

asked: list = []


def session_step() -> int:
    """Steps that the run of the moment has done."""
    run = sys.modules["hotlora.trainer.hosts.webui_extension"].jobs()._run
    return -1 if run is None or run.session is None else run.session.step


def watch_the_queue() -> None:
    lock = call_queue.queue_lock
    if hasattr(type(lock), "unwatched"):
        return
    unwatched = type(lock).unwatched = type(lock).acquire

    def acquire(self, *args, **kwargs):
        if threading.current_thread().name == "hotlora-jobs":
            return unwatched(self, *args, **kwargs)
        before = session_step()
        taken = unwatched(self, *args, **kwargs)
        asked.append((before, session_step()))
        return taken

    type(lock).acquire = type(lock).__enter__ = acquire


def state() -> dict:
    model = sd_models.model_data.sd_model
    unet = model.model.diffusion_model
    weights, facts = hashlib.sha256(), []
    for path, part in model.named_modules():
        own = [key for key in ("forward", "checkpoint", "use_checkpoint") if key in part.__dict__]
        facts.append((path, part.training, [repr(part.__dict__[key])[:40] for key in own], str(getattr(part, "network_current_names", None))))
        for name, x in part._parameters.items():
            if x is not None:
                facts.append((path, name, x.requires_grad, str(x.dtype), str(x.device), id(x), x.data_ptr(), x.grad is None))
                weights.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    networks = sys.modules["networks"]
    progress = {key: str(value) for key, value in shared.state.__dict__.items() if key not in ("time_start", "job_timestamp")}
    return {
        "weights": weights.hexdigest(), "modules": hashlib.sha256(repr(facts).encode()).hexdigest(), "model": id(model), "unet": id(unet),
        "attention": [kind.forward.__qualname__ for module in (ldm.modules.attention, sgm.modules.attention) for kind in (module.CrossAttention,)],
        "optimizer": [getattr(sd_hijack.current_optimizer, "name", None), sd_hijack.model_hijack.optimization_method],
        "merging": getattr(model, "applied_token_merged_ratio", 0), "chosen_unet": str(sd_unet.current_unet_option),
        "hypernetworks": [id(shared.loaded_hypernetworks), len(shared.loaded_hypernetworks)], "loaded": [net.name for net in networks.loaded_networks],
        "options": hashlib.sha256(json.dumps(shared.opts.data, sort_keys=True, default=str).encode()).hexdigest(),
        "posteriors": [module.distributions.DiagonalGaussianDistribution.sample.__name__ for module in
                       (ldm.modules.distributions, sgm.modules.distributions)],
        "progress": progress, "sampling": type(k_diffusion.sampling.torch).__name__, "parameterization": model.parameterization,
        "devices": [str(devices.dtype), str(devices.dtype_unet), str(devices.dtype_vae), devices.fp8],
        "attributes": sorted(name for name in model.__dict__), "grad": torch.is_grad_enabled()}


def failing(error: str, after: int, times: int = 10**9) -> None:
    from hotlora.trainer.hosts.webui import WebuiBackend

    kinds = {"memory": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9999 bytes."), "other": KeyError("a fault of a test")}
    if not hasattr(WebuiBackend, "sound"):
        WebuiBackend.sound = WebuiBackend.predict
    left = [after]

    def predict(self, *args):
        out = WebuiBackend.sound(self, *args)
        left[0] -= 1
        if -times <= left[0] < 0:
            raise kinds[error]
        return out

    WebuiBackend.predict = predict if error else WebuiBackend.sound


def baked(tags: list) -> dict:
    """Norm of the change of each layer, after the host itself has put the LoRAs in; and then out again."""
    networks, model = sys.modules["networks"], sd_models.model_data.sd_model
    with call_queue.queue_lock, torch.no_grad():
        before = {}
        for name, module in model.network_layer_mapping.items():
            if isinstance(getattr(module, "weight", None), torch.Tensor) and name.startswith("diffusion_model"):
                networks.network_apply_weights(module)
        networks.load_networks([])
        for names in ([], [name for name, _ in tags]):
            networks.load_networks(names, [weight for _, weight in tags], [weight for _, weight in tags], [None] * len(names))
            changes = {}
            for name, module in model.network_layer_mapping.items():
                if isinstance(getattr(module, "weight", None), torch.Tensor) and name.startswith("diffusion_model"):
                    networks.network_apply_weights(module)
                    if not names:
                        before[name] = module.weight.clone()
                    else:
                        changes[name] = (module.weight - before[name]).flatten()[:64].tolist()
        networks.load_networks([])
        for module in model.network_layer_mapping.values():
            networks.network_apply_weights(module)
    return {"changes": {name: change for name, change in changes.items() if any(change)}, "layers": len(changes)}


def alike(name: str, weight: float) -> dict:
    """How far apart the two are, against what the file changes."""
    from hotlora.trainer.adapter import Adapter
    from hotlora.trainer.hosts.webui import WebuiBackend
    from hotlora.trainer.lora_file import load_lora, to_layers

    networks, model, backend = sys.modules["networks"], sd_models.model_data.sd_model, WebuiBackend()
    given = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    with call_queue.queue_lock, torch.no_grad():
        context = conditioning(model, "a photo of sks", torch.zeros(6))["context"]
        said = {}
        for what, names in (("plain", []), ("theirs", [name]), ("", [])):
            networks.load_networks(names, [weight] * len(names), [weight] * len(names), [None] * len(names))
            said[what] = model.model.diffusion_model(*given, context)
        file = networks.available_networks[name].filename
    adapter = Adapter.from_weights(backend.components(), to_layers(load_lora(file)[0], backend.lora_key, backend.components()))
    adapter.set_multiplier(unet=weight)
    with backend.borrow(), adapter.attached(backend.components()), torch.no_grad():
        ours = backend.predict(*given, backend.encode_text(["a photo of sks"]), torch.zeros(1, 6))
    return {"difference": ((ours - said["theirs"]).norm() / (ours - said["plain"]).norm()).item()}


@contextmanager
def in_half():
    """The denoiser's weights in half precision; those of a checkpoint in half precision come back exactly."""
    unet, chosen = sd_models.model_data.sd_model.model.diffusion_model, devices.dtype_unet
    before = {name: x.detach().clone() for name, x in unet.named_parameters()}
    unet.half()
    devices.dtype_unet = torch.float16
    try:
        yield
    finally:
        devices.dtype_unet = chosen
        unet.float()
        assert all(torch.equal(x, before[name]) for name, x in unet.named_parameters())


def gradients() -> dict:
    from hotlora.trainer.adapter import Adapter
    from hotlora.trainer.config import TrainConfig
    from hotlora.trainer.hosts.webui import WebuiBackend
    from hotlora.trainer.objective import Objective

    backend = WebuiBackend(shared.opts.hotlora_prediction)
    adapter = Adapter.create(backend.components(), {"unet": None}, rank=4, alpha=2, conv_rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.up.normal_(0, 0.02, generator=generator)
    objective = Objective(TrainConfig(train_data_dir="x", min_snr_gamma=0), backend.prediction)
    captions = ["a photo of sks", "a red star, on a mat, " * 30, "a (plain) [caption] BREAK with signs, " * 10, ""]
    buckets = [(8, 8), (8, 8), (8, 16), (8, 16)]
    pixels = [torch.rand(1, 3, 8 * h, 8 * w, generator=generator) * 2 - 1 for h, w in buckets]
    t_B = torch.tensor([700, 120, 400, 950])
    noise = [torch.randn(1, 4, h, w, generator=generator) for h, w in buckets]
    sizes = torch.tensor([[8 * h + 5.0, 8 * w + 9, 3, 4, 8 * h, 8 * w] for h, w in buckets])
    with backend.borrow(), adapter.attached(backend.components()):
        z = [backend.encode_image(x) for x in pixels]
        losses = []
        for rows in ([0, 1], [2, 3]):
            z0, eps, t = torch.cat([z[i] for i in rows]), torch.cat([noise[i] for i in rows]), t_B[rows]
            # caption by caption and then together, as the cache of a run does
            texts = [{key: x[0] for key, x in backend.encode_text([captions[i]]).items()} for i in rows]
            assert len({len(text["hidden_BLD"]) for text in texts}) == 2, "both batches hold captions of different lengths"
            cond = backend.batch_text(texts)
            with torch.autocast("cpu", torch.bfloat16, enabled=devices.dtype_unet == torch.float16):
                out = backend.predict(objective.noisy(z0, eps, t), objective.model_timestep(t), cond, sizes[rows])
            losses.append(objective.loss(out, objective.target(z0, eps, t), t))
        loss_B = torch.cat(losses)
        loss_B.sum().backward()
    ours = {path: (layer.down.grad, layer.up.grad) for (_, path), layer in adapter.layers.items()}
    with call_queue.queue_lock:
        reference_B, theirs = reference(adapter, pixels, captions, noise, t_B, sizes, backend.prediction.kind)
    error = max(((a - b).norm() / b.norm()).item() for path in ours for a, b in zip(ours[path], theirs[path]))
    return {"family": backend.family, "kind": backend.prediction.kind, "weights": str(backend.dtype), "layers": len(ours), "gradient_error": error,
            "loss_error": ((loss_B.detach() - reference_B).abs() / reference_B).max().item()}


def reference(adapter, pixels, captions, noise, t_B, sizes, kind) -> tuple:
    """Losses and gradients by the host's own modules, with the merged weights in fp32 as plain tensors and attention written out."""
    model = sd_models.model_data.sd_model
    unet = model.model.diffusion_model
    layers = {path: (layer.down.detach().clone().requires_grad_(), layer.up.detach().clone().requires_grad_(), layer.scale)
              for (_, path), layer in adapter.layers.items()}
    modules = dict(unet.named_modules())
    bare = {name: x.detach().float() for name, x in unet.named_parameters()}
    frozen = {path: modules[path].weight.detach().float() for path in layers}
    a_T = model.alphas_cumprod_original.float()
    losses = []
    for i, caption in enumerate(captions):
        merged = {**bare, **{f"{path}.weight": frozen[path] + scale * (up.flatten(1) @ down.flatten(1)).view_as(frozen[path])
                  for path, (down, up, scale) in layers.items()}}
        with torch.no_grad():
            posterior = model.first_stage_model.encode if not model.is_sdxl else super(type(model.first_stage_model), model.first_stage_model).encode
            z0 = model.scale_factor * posterior(pixels[i].to(model.first_stage_model.dtype if hasattr(model.first_stage_model, "dtype") else torch.float32)).mean
            text = caption.replace("(", "\\(").replace(")", "\\)").replace("[", "\\[").replace("]", "\\]")
            with devices.autocast():
                given = with_plain_break(lambda: conditioning(model, text, sizes[i]))
        a = a_T[t_B[i]]
        x_t = a.sqrt() * z0.float() + (1 - a).sqrt() * noise[i]
        target = noise[i] if kind == "eps" else a.sqrt() * noise[i] - (1 - a).sqrt() * z0.float()
        with plain_attention(unet), in_float32():
            out = torch.func.functional_call(unet, merged, (x_t, t_B[i:i + 1]), {key: value.float() for key, value in given.items()})
        loss = (out - target).square().mean()
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses), {path: (down.grad, up.grad) for path, (down, up, _) in layers.items()}


@contextmanager
def in_float32():
    chosen, devices.dtype_unet = devices.dtype_unet, torch.float32
    try:
        yield
    finally:
        devices.dtype_unet = chosen


@contextmanager
def plain_attention(unet):
    kinds = (ldm.modules.attention.CrossAttention, sgm.modules.attention.CrossAttention)
    tiled = [part.__dict__["__webui_hypertile_params"] for part in unet.modules() if "__webui_hypertile_params" in part.__dict__]
    before, former = [kind.forward for kind in kinds], [(tiling.forward, tiling.enabled) for tiling in tiled]
    for kind in kinds:
        kind.forward = hypernetwork.attention_CrossAttention_forward
    for tiling in tiled:
        tiling.forward, tiling.enabled = hypernetwork.attention_CrossAttention_forward.__get__(tiling.forward.__self__), False
    try:
        yield
    finally:
        for kind, forward in zip(kinds, before):
            kind.forward = forward
        for tiling, (forward, enabled) in zip(tiled, former):
            tiling.forward, tiling.enabled = forward, enabled


def conditioning(model, text, sizes) -> dict:
    if not model.is_sdxl:
        return {"context": model.get_learned_conditioning([text])}
    batch = {"txt": [text], **{key: sizes[None, at] for key, at in (("original_size_as_tuple", [0, 1]), ("crop_coords_top_left", [2, 3]),
                                                                     ("target_size_as_tuple", [4, 5]))}}
    found = model.conditioner(batch)
    return {"context": found["crossattn"], "y": found["vector"]}


def with_plain_break(make):
    """BREAK is a command in a prompt, for which it has no sign, and a word in a caption."""
    from modules import prompt_parser

    former, prompt_parser.re_break = prompt_parser.re_break, prompt_parser.re.compile("(?!)")
    try:
        return make()
    finally:
        prompt_parser.re_break = former


def borrowing(times: int) -> dict:
    from hotlora.trainer.hosts.webui import WebuiBackend

    backend, spent = WebuiBackend(), []
    for _ in range(times):
        began = time.perf_counter()
        with backend.borrow():
            pass
        spent.append(1000 * (time.perf_counter() - began))
    return {"milliseconds": sorted(spent)[times // 2]}


def text_id() -> str:
    from hotlora.trainer.hosts.webui import WebuiBackend

    return WebuiBackend().text_id


def count_callbacks(app) -> dict:
    ours = [callback for callbacks in script_callbacks.callback_map.values() for callback in callbacks
            if "hotlora" in getattr(callback.callback, "__module__", "")]
    return {"callbacks": len(ours), "routes": sum(getattr(route, "name", None) == "hotlora" for route in app.routes), "tabs": shared.tab_names}


def routes(_demo, app) -> None:
    watch_the_queue()

    def look() -> dict:
        with call_queue.queue_lock:
            return state()

    def waited() -> list:
        found, asked[:] = list(asked), []
        return found

    def fail(error: str = Body(""), after: int = Body(0), times: int = Body(10**9)) -> None:
        failing(error, after, times)

    def bake(tags: list = Body(..., embed=True)) -> dict:
        return baked(tags)

    def compare_ways(name: str = Body(...), weight: float = Body(...)) -> dict:
        return alike(name, weight)

    def borrow(times: int = Body(5, embed=True)) -> dict:
        return borrowing(times)

    def compare(half: bool = Body(False, embed=True)) -> dict:
        if not half:
            return gradients()
        with in_half():
            return gradients()

    def callbacks() -> dict:
        return count_callbacks(app)

    for name, work in (("state", look), ("failing", fail), ("waiting", waited), ("baked", bake), ("alike", compare_ways), ("text_id", text_id), ("gradients", compare), ("borrowing", borrow),
                       ("callbacks", callbacks)):
        app.add_api_route(f"/inside/{name}", work, methods=["POST"])


script_callbacks.on_app_started(routes)
