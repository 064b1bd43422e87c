"""A real ComfyUI with this checkout in its custom_nodes, driven over HTTP; on the CPU, or where `places.on_gpu` says so on the GPU."""
from __future__ import annotations

import copy
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import torch
from safetensors.torch import save_file

from hotlora.tests.hosts.places import host, on_gpu, setting
from hotlora.trainer.demo import drawings
from hotlora.tests.random_models import checkpoint_weights, full_shapes, vega_weights, write_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent


def small_shapes(family: str = "sd15") -> dict:
    """SD1.5 with a denoiser of two levels: ComfyUI counts the levels, and takes VAE and text encoder in full size only."""
    shapes = copy.deepcopy(full_shapes(family))
    shapes["unet"].update(block_out_channels=[320, 640], layers_per_block=1, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
                          up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
    if family == "sd2":  # diffusers' settings say 512, which nothing there reads; the original's layer is as wide as the encoder
        shapes["text_encoders"][0]["config"]["projection_dim"] = shapes["text_encoders"][0]["config"]["hidden_size"]
    return shapes


class ComfyServer:
    """`base` is its own models, input, output and custom_nodes; the checkout is linked in, and further packs of `links` by their names."""

    def __init__(self, base: Path, *arguments: str, extensions: bool = True, environment: dict[str, str] | None = None,
                 links: dict[str, Path] | None = None) -> None:
        self.folder, self.python = host("COMFYUI")
        self.base, self.arguments, self.environment = base, arguments, environment or {}
        for name in ("custom_nodes", "input", "output", "user", "temp", "models/checkpoints", "models/loras"):
            (base / name).mkdir(parents=True, exist_ok=True)
        for name, folder in {**({"hotlora": ROOT} if extensions else {}), **(links or {})}.items():
            link = base / "custom_nodes" / name
            if not link.exists():
                link.symlink_to(folder, target_is_directory=True)
        self.loras = base / "models" / "loras"
        self.log = base / "server.log"

    def start(self, timeout: float = 180, port: int = 0) -> ComfyServer:
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))
            self.port = free.getsockname()[1]
        # COMFYUI_ARGUMENTS: what this installation needs, such as --front-end-root for one without its page
        command = [str(self.python), "main.py", "--deterministic" if on_gpu() else "--cpu", "--port", str(self.port), "--base-directory", str(self.base),
                   "--database-url", "sqlite:///:memory:", *shlex.split(setting("COMFYUI_ARGUMENTS") or ""), *self.arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", **self.environment}
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended at once:\n{self.tail()}")
            try:
                self.get("/system_stats")
                return self
            except OSError:
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI does not answer:\n{self.tail()}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path: str):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: dict | None = None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(data or {}).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()) from None
        return json.loads(body) if body else None

    def queue(self, graph: dict) -> str:
        """Id of the queued prompt. ValueError with what the page would show on nodes whose inputs are turned down."""
        answer = self.post("/prompt", {"prompt": graph, "client_id": uuid.uuid4().hex})
        if answer["node_errors"]:
            raise ValueError(json.dumps(answer["node_errors"]))
        return answer["prompt_id"]

    def wait(self, prompt: str, timeout: float = 600) -> dict:
        """The history entry of a prompt that has ended, however it ended."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI has ended:\n{self.tail()}")
            history = self.get(f"/history/{prompt}")
            if history.get(prompt, {}).get("status", {}).get("completed") is not None and history[prompt]["status"].get("status_str"):
                return history[prompt]
            time.sleep(0.2)
        raise RuntimeError(f"the prompt does not end:\n{self.tail()}")

    def run(self, graph: dict, timeout: float = 600) -> dict:
        return self.wait(self.queue(graph), timeout)

    def picture(self, entry: dict, node: str):
        """The first picture that a node of a finished prompt saved."""
        from PIL import Image

        place = entry["outputs"][node]["images"][0]
        return Image.open(self.base / place["type"] / place["subfolder"] / place["filename"])


def write_model(base: Path, name: str = "random.safetensors", shapes: dict | None = None, dtype: torch.dtype = torch.float16, **options) -> str:
    write_checkpoint(base / "models" / "checkpoints" / name, shapes or small_shapes(), dtype, **options)
    return name


def write_gallery(base: Path, name: str = "me") -> None:
    """Four captioned pictures of two shapes, as `input/name`."""
    folder = base / "input" / name
    folder.mkdir(parents=True)
    rng = random.Random(1)
    for i, background in enumerate(("white", "gray", "black", "beige")):
        drawings.draw_mascot(rng, background).resize((96, 64 if i % 2 else 96)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a photo of sks on a {background} background")


def write_video_model(base: Path, name: str = "video.safetensors") -> str:
    """A Wan of one narrow block, which ComfyUI takes for the video model that it is in all but size."""
    dim, ffn = 128, 256
    shapes = {"head.modulation": (1, 2, dim), "head.head.weight": (64, dim), "head.head.bias": (64,), "patch_embedding.weight": (dim, 16, 1, 2, 2),
              "patch_embedding.bias": (dim,), "blocks.0.ffn.0.weight": (ffn, dim), "blocks.0.ffn.0.bias": (ffn,), "blocks.0.modulation": (1, 6, dim)}
    path = base / "models" / "diffusion_models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, str(path))
    return name


def write_vega(base: Path) -> None:
    """An SDXL of Segmind-Vega's shape."""
    path = base / "models" / "checkpoints" / "random.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: x.half().contiguous() for name, x in vega_weights().items()}, str(path))


def write_quantized(base: Path, form: str, name: str = "quantized.safetensors") -> str:
    """The small SD1.5 with the attention layers of its denoiser in a form that ComfyUI calls "float8_e4m3fn" or "int8_tensorwise"."""
    weights = checkpoint_weights(small_shapes())
    largest, dtype = {"float8_e4m3fn": (448.0, torch.float8_e4m3fn), "int8_tensorwise": (127.0, torch.int8)}[form]
    packed = {}
    for key, x in weights.items():
        if key.startswith("model.diffusion_model.") and "attn" in key and x.dim() == 2:
            layer, scale = key.removesuffix(".weight"), x.abs().max().float() / largest
            y = x.float() / scale
            packed[key] = (y if dtype.is_floating_point else y.round()).to(dtype)
            packed[f"{layer}.weight_scale"] = scale
            packed[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
        else:
            packed[key] = x.half()
    path = base / "models" / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: x.contiguous() for key, x in packed.items()}, str(path))
    return name


def write_smoothed(base: Path, name: str = "smoothed.safetensors") -> str:
    """The small SD1.5 with one layer in "nvfp4" with smoothing: right in form, its numbers are zeros."""
    weights = {key: x.half() for key, x in checkpoint_weights(small_shapes()).items()}
    layer = next(key for key in weights if key.endswith("attn1.to_q.weight")).removesuffix(".weight")
    outputs, inputs = weights[f"{layer}.weight"].shape
    weights |= {f"{layer}.weight": torch.zeros(outputs, inputs // 2, dtype=torch.uint8), f"{layer}.weight_scale_2": torch.ones(()),
                f"{layer}.weight_scale": torch.zeros(-outputs // 128 * -128, -inputs // 64 * -4, dtype=torch.uint8),
                f"{layer}.pre_quant_scale": torch.ones(inputs),
                f"{layer}.comfy_quant": torch.tensor(list(json.dumps({"format": "nvfp4"}).encode()), dtype=torch.uint8)}
    save_file({key: x.contiguous() for key, x in weights.items()}, str(base / "models" / "checkpoints" / name))
    return name


def is_cached(entry: dict, node: str) -> bool:
    """Whether ComfyUI took what this node gave from its cache, and did not run it."""
    return any(kind == "execution_cached" and node in message["nodes"] for kind, message in entry["status"]["messages"])


def error_of(entry: dict) -> str:
    """The message of the node that failed; empty when none did."""
    for kind, message in entry["status"]["messages"]:
        if kind == "execution_error":
            return message["exception_message"].strip()
    return ""


def ended(entry: dict) -> str:
    """How a prompt ended: "success", "interrupted" or "error"."""
    kinds = {kind for kind, _ in entry["status"]["messages"]}
    return next((end for end in ("interrupted", "error", "success") if f"execution_{end}" in kinds), "?")
