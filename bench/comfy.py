"""Our training step inside ComfyUI, next to the host's own forward pass and to its own TrainLoraNode.

    python bench/comfy.py --comfy DIR --python PYTHON     a full-size SD1.5 with random weights, 256x256, batch 1, rank 8
    python bench/comfy.py ... --small                     a denoiser of two levels, to see that the bench runs
    python bench/comfy.py ... --json                      the same as one JSON object

DIR and PYTHON default to COMFYUI_DIR and COMFYUI_PYTHON. Each variant runs in a fresh process that loads the same checkpoint
and has first drawn with it, as a host has; seconds are the median of the steps after the first, and peak memory is that of
the process, on a GPU what is in use there. On a GPU weights and steps are bf16, and the memory is managed as ComfyUI does by default
(--memory dynamic), or all weights stay there (--memory highvram). `ratio` is the time of a step over twice that of an inference forward, measured in the same process.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {"forward": "inference forward", "ours": "HotLoRA", "ours_checkpointed": "HotLoRA, checkpointing",
            "native": "TrainLoraNode, default", "native_bypass": "TrainLoraNode, bypass"}
RANK = 8


def package() -> None:
    spec = importlib.util.spec_from_file_location("hotlora_bootstrap", ROOT / "__init__.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def worker(variant: str, comfy: Path, checkpoint: Path, side: int, steps: int, memory: str) -> dict:
    package()
    from hotlora.bench.comfy_host import enter, load, use_dynamic_vram
    from hotlora.bench.memory_peak import gpu_watched, peak_bytes

    enter(comfy, *{"cpu": ["--cpu"], "dynamic": ["--bf16-unet"], "highvram": ["--bf16-unet", "--highvram"]}[memory])
    if memory == "dynamic":
        use_dynamic_vram()
    import torch

    model, clip, vae = load(checkpoint)
    with torch.inference_mode():
        cond = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of sks"))
        latent = vae.encode(torch.rand(1, side, side, 3))
    forward = time_forward(model, cond, latent)
    with nullcontext() if memory == "cpu" else gpu_watched() as most:
        if variant == "forward":
            seconds = [time_forward(model, cond, latent)]
        elif variant.startswith("ours"):
            seconds = time_ours(model, clip, vae, cond, latent, steps, "checkpointed" in variant)
        else:
            seconds = time_native(model, cond, latent, steps, "bypass" in variant, "fp32" if memory == "cpu" else "bf16")
    return {"forward": forward, "seconds": statistics.median(seconds), "peak_bytes": peak_bytes() if memory == "cpu" else most[0],
            "weight_bytes": sum(p.numel() * p.element_size() for p in model.model.diffusion_model.parameters())}


def has_gpu(python: Path) -> bool:
    asked = subprocess.run([str(python), "-c", "import torch; print(torch.cuda.is_available())"], stdout=subprocess.PIPE, text=True, check=True)
    return asked.stdout.strip() == "True"


def time_forward(model, cond, latent, repeats: int = 4) -> float:
    """The denoiser alone, as the sampler calls it, with the model loaded by the host's own sampler before."""
    import comfy.model_management as mm
    import comfy.sample
    import torch

    with torch.inference_mode():
        comfy.sample.sample(model, torch.randn(latent.shape), 1, 1.0, "euler", "normal", cond, cond, torch.zeros(latent.shape), disable_pbar=True)
        mm.load_models_gpu([model])
        base, device = model.model, model.load_device
        x, hidden, sigma = torch.randn(latent.shape, device=device), cond[0][0].to(device), torch.tensor([3.0], device=device)
        times = []
        for _ in range(repeats):
            start = _now(device)
            base.apply_model(x, sigma, c_crossattn=hidden, transformer_options={"cond_or_uncond": [0], "sigmas": sigma})
            times.append(_now(device) - start)
    return statistics.median(times[1:])


def time_ours(model, clip, vae, cond, latent, steps: int, checkpointing: bool) -> list[float]:
    import torch
    from hotlora.trainer.adapter import Adapter
    from hotlora.trainer.hosts.comfy import ComfyBackend

    with torch.inference_mode(False):
        backend = ComfyBackend(model, clip, vae)
        # what TrainLoraNode trains: every linear and convolution layer
        adapter = Adapter.create(backend.components(), {"unet": ["all-linear"]}, rank=RANK, alpha=RANK, conv_rank=RANK)
        adapter.to(backend.device)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=5e-4)
        z0 = model.model.process_latent_in(latent).clone().to(backend.device)
        given = {"hidden_BLD": cond[0][0].clone().float()}
        size = torch.tensor([[8.0 * latent.shape[2], 8.0 * latent.shape[3], 0, 0, 8.0 * latent.shape[2], 8.0 * latent.shape[3]]])
        backend.set_checkpointing(checkpointing)
        times = []
        with backend.borrow(), adapter.attached(backend.components()):
            for _ in range(steps):
                start = _now(backend.device)
                noise = torch.randn_like(z0)
                out = backend.predict(0.7 * z0 + 0.7 * noise, torch.tensor([500]), given, size)
                torch.nn.functional.mse_loss(out, noise).backward()
                torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                times.append(_now(backend.device) - start)
    return times[1:]


def time_native(model, cond, latent, steps: int, bypass: bool, dtype: str) -> list[float]:
    """TrainLoraNode with its own defaults, but for batch, rank and number of steps; a step ends when the node counts it."""
    import comfy_extras.nodes_train as native
    import torch

    times: list[float] = []

    class Bar:
        def __init__(self, total, node_id=None): ...
        def update(self, value): times.append(_now(model.load_device))
        def update_absolute(self, *values): ...

    native.ProgressBar = Bar
    with torch.inference_mode():
        native.TrainLoraNode.execute(
            model=[model], latents=[{"samples": latent}], positive=[cond], batch_size=[1], grad_accumulation_steps=[1], steps=[steps],
            learning_rate=[5e-4], rank=[RANK], optimizer=["AdamW"], loss_function=["MSE"], seed=[0], training_dtype=[dtype], lora_dtype=[dtype],
            quantized_backward=[False], algorithm=["LoRA"], gradient_checkpointing=[True], checkpoint_depth=[1], offloading=[False],
            existing_lora=["[None]"], bucket_mode=[False], bypass_mode=[bypass])
    assert len(times) >= steps, f"TrainLoraNode counted {len(times)} steps"
    return [after - before for before, after in zip(times, times[1:])]


def _now(device) -> float:
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def run(options: argparse.Namespace) -> dict:
    results, memory = {}, options.memory if has_gpu(options.python) else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or Path(folder) / "random.safetensors"
        if not options.checkpoint:
            write_random(checkpoint, options.small)
        for variant in options.variants:
            command = [str(options.python), str(Path(__file__).resolve()), "--worker", variant, "--comfy", str(options.comfy), "--checkpoint", str(checkpoint),
                       "--side", str(options.side), "--steps", str(options.steps), "--memory", memory]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[variant] = json.loads(done.stdout.splitlines()[-1])
            print(f"{VARIANTS[variant]}: {results[variant]['seconds']:.3g} s", file=sys.stderr)
            results[variant]["ratio"] = results[variant]["seconds"] / (2 * results[variant]["forward"])
    return {"bench": "comfy", "picture": options.side, "batch": 1, "rank": RANK, "steps": options.steps, "memory": memory, "variants": results}


def write_random(path: Path, small: bool) -> None:
    package()
    import torch
    from hotlora.tests.hosts.comfy_server import small_shapes
    from hotlora.tests.random_models import full_shapes, write_checkpoint

    write_checkpoint(path, small_shapes() if small else full_shapes("sd15"), torch.float16)


def report(result: dict) -> str:
    lines = [f"{result['picture']}x{result['picture']}, batch 1, rank {result['rank']}, {result['steps']} steps, memory: {result['memory']}", "",
             "| | seconds | ratio to 2 x forward | peak memory, GB |", "|---|---|---|---|"]
    for name, one in result["variants"].items():
        ratio = "" if name == "forward" else f"{one['ratio']:.2f}"
        lines.append(f"| {VARIANTS[name]} | {one['seconds']:.3g} | {ratio} | {one['peak_bytes'] / 1e9:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfy", type=Path, default=os.environ.get("COMFYUI_DIR"), help="folder of ComfyUI")
    parser.add_argument("--python", type=Path, default=os.environ.get("COMFYUI_PYTHON"), help="ComfyUI's Python")
    parser.add_argument("--checkpoint", type=Path, default=None, help="a checkpoint (default: random weights in SD1.5's shape)")
    parser.add_argument("--small", action="store_true", help="a denoiser of two levels: shows that the bench runs")
    parser.add_argument("--side", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps per variant, the first is not counted (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="what to measure (default: everything)")
    parser.add_argument("--memory", choices=("dynamic", "highvram", "cpu"), default="dynamic", help="how ComfyUI manages a GPU's memory (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--worker", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.comfy or not (options.worker or options.python):
        parser.error("--comfy and --python are needed, or COMFYUI_DIR and COMFYUI_PYTHON")
    if options.worker:
        print(json.dumps(worker(options.worker, options.comfy, options.checkpoint, options.side, options.steps, options.memory)))
        return 0
    result = run(options)
    print(json.dumps(result) if options.json else report(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
