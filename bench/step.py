"""Time and memory of one training step, next to the host's own forward pass and to diffusers + peft.

    python bench/step.py            random weights in Stable Diffusion 1.5's shape: 256x256, fp32 on a CPU; 512x512, bf16 on a GPU
    python bench/step.py --tiny     a model of under a million weights, to see that the bench runs
    python bench/step.py --json     the same as one JSON object

With frozen weights a step cannot cost less than two forward passes, three with gradient checkpointing. `ratio` is the time
of a step over twice that of an inference forward: the limits are 1.0 and 1.5. Times are medians of interleaved runs in one
process; peak memory is that of a fresh process that does nothing else.
"""
from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import __init__  # noqa: E402, F401  registers the project as the package `hotlora`

SD15 = dict(sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768, attention_head_dim=8, norm_num_groups=32,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
TINY = {**SD15, "sample_size": 8, "layers_per_block": 1, "block_out_channels": (32, 64), "cross_attention_dim": 16,
        "attention_head_dim": 4, "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
RANK = 8
VARIANTS = {"forward": "inference forward", "step": "training step", "checkpointed": "with checkpointing",
            "peft": "diffusers + peft", "peft_checkpointed": "diffusers + peft, checkpointing"}


class Bench:
    """A denoiser with random weights, a batch, and one runnable step per variant. Each returns (seconds, seconds outside)."""

    def __init__(self, tiny: bool) -> None:
        import torch
        from diffusers import UNet2DConditionModel

        self.torch = torch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.picture = 64 if tiny else 512 if self.device.type == "cuda" else 256
        torch.manual_seed(0)
        config = TINY if tiny else SD15
        with self.device:
            self.unet = UNet2DConditionModel(**config).to(self.dtype).eval()
        self.parameters = sum(p.numel() for p in self.unet.parameters())
        side = self.picture // 8
        self.latents = torch.randn(1, 4, side, side, device=self.device)
        self.hidden = torch.randn(1, 77, config["cross_attention_dim"], device=self.device, dtype=self.dtype)
        self.t = torch.tensor([500], device=self.device)
        self.unet.requires_grad_(False)

    def prepare(self, names: list[str]) -> None:
        """Make adapters and optimizers of the variants that will run: ours, and peft's on a module that shares the weights."""
        if {"step", "checkpointed"} & set(names):
            from hotlora.trainer.adapter import Adapter

            self.adapter = Adapter.create({"unet": self.unet}, {"unet": TARGETS}, rank=RANK, alpha=RANK)
            self.optimizer = self._optimizer(self.adapter.parameters())
        if {"peft", "peft_checkpointed"} & set(names):
            from peft import LoraConfig

            shared = {id(x): x for x in [*self.unet.parameters(), *self.unet.buffers()]}
            self.peft_unet = copy.deepcopy(self.unet, shared).train()
            self.peft_unet.requires_grad_(False)
            self.peft_unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))
            self.peft_parameters = [p for p in self.peft_unet.parameters() if p.requires_grad]
            for p in self.peft_parameters:
                p.data = p.data.float()
            self.peft_optimizer = self._optimizer(self.peft_parameters)

    def _optimizer(self, parameters):
        return self.torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)

    def now(self) -> float:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def forward(self) -> tuple[float, float]:
        start = self.now()
        with self.torch.inference_mode():
            self.unet(self.latents.to(self.dtype), self.t, self.hidden, return_dict=False)
        return self.now() - start, 0.0

    def step(self, checkpointing: bool = False) -> tuple[float, float]:
        from hotlora.trainer.checkpointing import set_checkpointing
        from hotlora.trainer.frozen import borrowed

        with ExitStack() as stack:
            stack.enter_context(borrowed(self.unet))
            stack.enter_context(self.adapter.attached({"unet": self.unet}))
            set_checkpointing(self.unet, checkpointing)
            stack.callback(set_checkpointing, self.unet, False)
            return self._train(self.unet, self.optimizer, list(self.adapter.parameters()))

    def checkpointed(self) -> tuple[float, float]:
        return self.step(checkpointing=True)

    def peft(self, checkpointing: bool = False) -> tuple[float, float]:
        """As diffusers' training scripts do it; in bf16 under autocast, with adapters in fp32."""
        if checkpointing:
            self.peft_unet.enable_gradient_checkpointing()
        else:
            self.peft_unet.disable_gradient_checkpointing()
        autocast = self.dtype != self.torch.float32
        return self._train(self.peft_unet, self.peft_optimizer, self.peft_parameters, autocast)

    def peft_checkpointed(self) -> tuple[float, float]:
        return self.peft(checkpointing=True)

    def _train(self, unet, optimizer, parameters, autocast: bool = False) -> tuple[float, float]:
        torch = self.torch
        start = self.now()
        noise = torch.randn_like(self.latents)
        noisy = (0.7 * self.latents + 0.7 * noise).to(self.dtype)
        before = self.now()
        with torch.autocast(self.device.type, dtype=self.dtype) if autocast else nullcontext():
            out = unet(noisy, self.t, self.hidden, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(out.float(), noise)
        loss.backward()
        after = self.now()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        end = self.now()
        return end - start, end - start - (after - before)


def measure_times(variants: list[str], tiny: bool, repeats: int) -> dict:
    """Medians over interleaved rounds of the variants in this process; the first round is not counted."""
    import torch

    bench = Bench(tiny)
    bench.prepare(variants)
    seconds, outside = {name: [] for name in variants}, {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name in variants:
            took, rest = getattr(bench, name)()
            if turn:
                seconds[name].append(took)
                outside[name].append(rest / took)
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": device, "dtype": str(bench.dtype).replace("torch.", ""), "picture": bench.picture, "batch": 1, "rank": RANK,
            "parameters": bench.parameters, "threads": torch.get_num_threads(), "repeats": repeats,
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "diffusers", "peft")}},
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "outside": {name: statistics.median(values) for name, values in outside.items() if name != "forward"}}


def measure_peak(variant: str, tiny: bool) -> dict:
    """Peak memory of this process after three runs of one variant."""
    from hotlora.bench.memory_peak import peak_bytes

    bench = Bench(tiny)
    bench.prepare([variant])
    for _ in range(3):
        getattr(bench, variant)()
    return {"peak_bytes": peak_bytes(bench.device.type)}


def in_fresh_process(arguments: list[str]) -> dict:
    # this process must stay small: on Linux a child's peak starts at what its parent held
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(variants: list[str], tiny: bool, repeats: int) -> dict:
    """Times and peaks of the variants, `forward` among them: seconds, shares of a step, ratios and bytes, each by variant."""
    size = ["--tiny"] if tiny else []
    result = in_fresh_process(["--worker", "times", "--variants", *variants, "--repeats", str(repeats), *size])
    result["peak_bytes"] = {name: in_fresh_process(["--worker", name, *size])["peak_bytes"] for name in variants}
    seconds = result["seconds"]
    result["ratio"] = {name: seconds[name] / (2 * seconds["forward"]) for name in variants if name != "forward"}
    return {"bench": "step", **result}


def report(result: dict) -> str:
    shape = (f"{result['parameters'] / 1e6:.3g} M weights, {result['picture']}x{result['picture']}, "
             f"batch {result['batch']}, rank {result['rank']}")
    load = "" if result["load_average"] is None else f", load average {result['load_average']:.1f}"
    lines = [f"{shape}, {result['dtype']} on {result['device']}, {result['threads']} threads{load}", "",
             "| | seconds | ratio to 2 x forward | outside forward and backward | peak memory, GB |", "|---|---|---|---|---|"]
    for name in result["seconds"]:
        ratio = f"{result['ratio'][name]:.2f}" if name in result["ratio"] else ""
        outside = f"{result['outside'][name]:.1%}" if name in result["outside"] else ""
        lines.append(f"| {VARIANTS[name]} | {result['seconds'][name]:.3g} | {ratio} | {outside} | {result['peak_bytes'][name] / 1e9:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: shows that the bench runs, says nothing about speed")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds after the warm-up (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS),
                        help="what to measure beside the forward pass (default: everything)")
    parser.add_argument("--worker", choices=["times", *VARIANTS], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    variants = [name for name in VARIANTS if name == "forward" or name in options.variants]
    if options.worker == "times":
        print(json.dumps(measure_times(variants, options.tiny, options.repeats)))
    elif options.worker:
        print(json.dumps(measure_peak(options.worker, options.tiny)))
    else:
        result = run(variants, options.tiny, options.repeats)
        print(json.dumps(result) if options.json else report(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
