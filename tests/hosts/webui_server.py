"""A real stable-diffusion-webui on the CPU with this checkout among its extensions, driven over HTTP."""
from __future__ import annotations

import base64
import copy
import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch

from hotlora.tests.hosts.places import host
from hotlora.tests.random_models import full_shapes, write_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = ("--skip-prepare-environment --skip-python-version-check --skip-torch-cuda-test --use-cpu all --no-half --precision full --api "
         "--no-download-sd-model --do-not-download-clip --disable-console-progressbars").split()
OPEN_CLIP = "ViT-B-32"
"""A small text encoder that open_clip knows by name, for the families that want one."""


def small_shapes(family: str = "sd15") -> dict:
    """The same kinds of parts as the family's, as narrow as the host's code allows: a picture takes a second.

    The VAE keeps its four levels, because the host divides by 8 in many places, and a level of the denoiser has two blocks, because
    the host counts so when it reads diffusers' names.
    """
    shapes = copy.deepcopy(full_shapes(family))
    encoders = shapes["text_encoders"]
    for encoder in encoders:
        if encoder["layout"] == "clip":
            encoder["config"].update(hidden_size=64, intermediate_size=128, num_hidden_layers=12, num_attention_heads=2, projection_dim=64)
        else:
            encoder["config"].update(hidden_size=512, intermediate_size=2048, num_hidden_layers=12 - (family == "sd2"), num_attention_heads=8,
                                     projection_dim=512)
    context = sum(encoder["config"]["hidden_size"] for encoder in encoders)
    shapes["unet"].update(block_out_channels=[64, 128], layers_per_block=2, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
                          up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], cross_attention_dim=context,
                          attention_head_dim=2 if family == "sd15" else [2, 4])
    if family == "sdxl":
        shapes["unet"].update(transformer_layers_per_block=[1, 1], addition_time_embed_dim=32,
                              projection_class_embeddings_input_dim=encoders[1]["config"]["projection_dim"] + 6 * 32)
    shapes["vae"].update(block_out_channels=[32] * 4, layers_per_block=1)
    return shapes


def shapes_of_both_hosts() -> dict:
    """The smallest SD1.5 that ComfyUI loads as well: it counts the levels, and takes all else in full size."""
    shapes = copy.deepcopy(full_shapes("sd15"))
    shapes["unet"].update(block_out_channels=[320, 640], down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
                          up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
    return shapes


class WebuiServer:
    """`base` is its data folder: models, extensions, settings and outputs; the host's own folder is not written to.

    `settings` is what the user would choose on the Settings page; `links` are further extensions by name.
    """

    HOST, FLAGS, PROBE = "WEBUI", FLAGS, "/sdapi/v1/cmd-flags"

    def __init__(self, base: Path, *arguments: str, extensions: bool = True, links: dict[str, Path] | None = None,
                 settings: dict | None = None, login: tuple[str, str] | None = None) -> None:
        self.folder, self.python = host(self.HOST)
        self.base, self.arguments, self.login = base, arguments, login
        for name in ("extensions", "models/Stable-diffusion", "models/Lora", "tmp"):
            (base / name).mkdir(parents=True, exist_ok=True)
        for name, path in {**({"hotlora": ROOT} if extensions else {}), **(links or {})}.items():
            link = base / "extensions" / name
            if not link.exists():
                link.symlink_to(path, target_is_directory=True)
        if settings or not (base / "config.json").exists():
            # the usual preview of a picture in the making needs a file that the webui fetches
            quiet = {"samples_save": False, "show_progress_every_n_steps": 0, "show_progress_type": "Approx cheap"}
            (base / "config.json").write_text(json.dumps({**quiet, **(settings or {})}))
        self.loras = base / "models" / "Lora"
        self.log = base / "server.log"

    def start(self, timeout: float = 300, port: int = 0, tries: int = 3) -> WebuiServer:
        """Start and wait until the API answers. The checkpoint loads meanwhile; the first picture waits for it.

        The webui itself fails to start when an open page asks it for something at the moment at which it adds its middleware.
        """
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))
            self.port = free.getsockname()[1]
        command = [str(self.python), "launch.py", *self.FLAGS, "--port", str(self.port), "--data-dir", str(self.base), *self.arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.base / "huggingface"), "PYTHONDONTWRITEBYTECODE": "1",
                       "PYTHONUNBUFFERED": "1", "GRADIO_ANALYTICS_ENABLED": "False", "TMPDIR": str(self.base / "tmp"), "no_proxy": "127.0.0.1,localhost"}
        for name in ("PYTHONPATH", "COMMANDLINE_ARGS"):
            environment.pop(name, None)
        begun = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if b"Cannot add middleware" in self.log.read_bytes()[begun:] and tries > 1:
                self.stop()
                return self.start(timeout, self.port, tries - 1)
            if self.process.poll() is not None:
                raise RuntimeError(f"the webui ended at once:\n{self.tail()}")
            try:
                # routes come one after the other, and the last ones are there when this line is
                if b"Startup time:" in self.log.read_bytes()[begun:]:
                    self.get(self.PROBE)
                    return self
            except (OSError, ValueError):
                pass
            time.sleep(0.3)
        raise RuntimeError(f"the webui does not answer:\n{self.tail()}")

    def reload_ui(self, timeout: float = 240) -> None:
        """Press "Reload UI" on the Settings page, and wait until the new server has all its routes.

        That is read off the log: the webui ends when something asks the new server for anything at the moment at which it adds its middleware.
        """
        config, begun = self.get("/config"), self.log.stat().st_size
        [button] = [part["id"] for part in config["components"] if part["props"].get("elem_id") == "settings_restart_gradio"]
        # gradio 4 writes beside the target what happens to it
        [number] = [i for i, one in enumerate(config["dependencies"]) if one["backend_fn"] and button in (x[0] if isinstance(x, list) else x for x in one["targets"])]
        self.post("/run/predict", {"fn_index": number, "data": [], "session_hash": "test"})
        until = time.monotonic() + timeout
        while b"Startup time:" not in self.log.read_bytes()[begun:]:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the webui does not come back:\n{self.tail()}")
            time.sleep(0.1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

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

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None,
                timeout: float = 600) -> tuple[int, dict, bytes]:
        """Status, headers (names in lower case) and body of whatever the server answers."""
        headers = dict(headers or {})
        if self.login:
            headers.setdefault("Authorization", "Basic " + base64.b64encode(":".join(self.login).encode()).decode())
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()

    def get(self, path: str):
        return self._json(*self.request("GET", path))

    def post(self, path: str, data: dict | None = None, timeout: float = 600):
        return self._json(*self.request("POST", path, json.dumps(data or {}).encode(), {"Content-Type": "application/json"}, timeout))

    @staticmethod
    def _json(status: int, headers: dict, body: bytes):
        if status >= 400:
            raise ValueError(f"{status}: {body.decode(errors='replace')}")
        return json.loads(body) if body else None

    def txt2img(self, prompt: str, **more):
        """The first picture of a request to the host's own API, small and with a fixed seed."""
        from PIL import Image

        asked = {"prompt": prompt, "seed": 5, "steps": 2, "width": 64, "height": 64, "sampler_name": "Euler", "cfg_scale": 7.0, **more}
        answer = self.post("/sdapi/v1/txt2img", asked)
        return Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB")


def write_model(base: Path, name: str = "random.safetensors", shapes: dict | None = None, dtype: torch.dtype = torch.float16,
                prediction: str = "eps", **options) -> str:
    """A checkpoint of random weights, the host's description of its shapes beside it, and the tokenizer where the host looks for it."""
    shapes = shapes or small_shapes()
    path = base / "models" / "Stable-diffusion" / name
    write_checkpoint(path, shapes, dtype, **options)
    path.with_suffix(".yaml").write_text(json.dumps({"model": _config(shapes, prediction)}, indent=1))
    _write_tokenizer(base, shapes)
    return name


def _write_tokenizer(base: Path, shapes: dict) -> None:
    """CLIP's vocabulary in a Hugging Face cache of its own, with the width of the text encoder as the host's code asks for it there."""
    from hotlora.trainer.hosts import parts

    place = base / "huggingface" / "hub" / "models--openai--clip-vit-large-patch14"
    snapshot = place / "snapshots" / "0"
    snapshot.mkdir(parents=True, exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text("0")
    for name, content in parts.tokenizer_files().items():
        (snapshot / name).write_text(content, encoding="utf-8")
    encoder = next((encoder for encoder in shapes["text_encoders"] if encoder["layout"] == "clip"), None)
    if encoder:
        (snapshot / "config.json").write_text(json.dumps({"model_type": "clip_text_model", "architectures": ["CLIPTextModel"],
                                                          **encoder["config"]}))


def _config(shapes: dict, prediction: str) -> dict:
    """The shapes in the words of the original code's configuration files."""
    return _sdxl_config(shapes, prediction) if len(shapes["text_encoders"]) == 2 else _sd_config(shapes, prediction)


def _sd_config(shapes: dict, prediction: str) -> dict:
    encoder = shapes["text_encoders"][0]
    if encoder["layout"] == "clip":
        text = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
    else:
        arch = OPEN_CLIP if encoder["config"]["hidden_size"] == 512 else "ViT-H-14"
        text = {"target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder", "params": {"arch": arch, "freeze": True, "layer": "penultimate"}}
    return {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {
        "linear_start": 0.00085, "linear_end": 0.0120, "num_timesteps_cond": 1, "timesteps": 1000, "first_stage_key": "jpg",
        "cond_stage_key": "txt", "image_size": 64, "channels": 4, "cond_stage_trainable": False, "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema", "scale_factor": shapes["vae"]["scaling_factor"], "use_ema": False, "parameterization": prediction,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                        "params": {**_unet_config(shapes), "image_size": 32}},
        "first_stage_config": _vae_config(shapes, "ldm.models.autoencoder.AutoencoderKL"), "cond_stage_config": text}}


def _sdxl_config(shapes: dict, prediction: str) -> dict:
    unet, width = shapes["unet"], shapes["text_encoders"][1]["config"]["hidden_size"]
    first, second = "sgm.modules.encoders.modules.FrozenCLIPEmbedder", "sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2"
    arch = OPEN_CLIP if width == 512 else "ViT-bigG-14"
    sizes = [{"is_trainable": False, "input_key": key, "target": "sgm.modules.encoders.modules.ConcatTimestepEmbedderND",
              "params": {"outdim": unet["addition_time_embed_dim"]}}
             for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")]
    texts = [{"is_trainable": False, "input_key": "txt", "target": first, "params": {"layer": "hidden", "layer_idx": 11}},
             {"is_trainable": False, "input_key": "txt", "target": second, "params": {
                 "arch": arch, "version": "laion2b_s39b_b160k", "freeze": True, "layer": "penultimate", "always_return_pooled": True,
                 "legacy": False}}]
    modules = "sgm.modules.diffusionmodules"
    scaling = f"{modules}.denoiser_scaling.{'VScaling' if prediction == 'v' else 'EpsScaling'}"
    return {"target": "sgm.models.diffusion.DiffusionEngine", "params": {
        "scale_factor": shapes["vae"]["scaling_factor"], "disable_first_stage_autocast": True,
        "denoiser_config": {"target": f"{modules}.denoiser.DiscreteDenoiser", "params": {
            "num_idx": 1000, "weighting_config": {"target": f"{modules}.denoiser_weighting.EpsWeighting"},
            "scaling_config": {"target": scaling},
            "discretization_config": {"target": f"{modules}.discretizer.LegacyDDPMDiscretization"}}},
        "network_config": {"target": f"{modules}.openaimodel.UNetModel", "params": {
            **_unet_config(shapes), "adm_in_channels": unet["projection_class_embeddings_input_dim"], "num_classes": "sequential",
            "spatial_transformer_attn_type": "softmax"}},
        "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": texts + sizes}},
        "first_stage_config": _vae_config(shapes, "sgm.models.autoencoder.AutoencoderKLInferenceWrapper")}}


def _unet_config(shapes: dict) -> dict:
    unet = shapes["unet"]
    widths, depths = unet["block_out_channels"], unet.get("transformer_layers_per_block", 1)
    attends = ["CrossAttn" in kind for kind in unet["down_block_types"]]
    heads = unet["attention_head_dim"]
    counted = {"num_heads": heads} if isinstance(heads, int) else {"num_head_channels": widths[0] // heads[0]}
    return {"in_channels": unet["in_channels"], "out_channels": unet["out_channels"], "model_channels": widths[0],
            "attention_resolutions": [2 ** level for level, wanted in enumerate(attends) if wanted], "num_res_blocks": unet["layers_per_block"],
            "channel_mult": [width // widths[0] for width in widths], "use_spatial_transformer": True, "transformer_depth": depths,
            "use_linear_in_transformer": unet.get("use_linear_projection", False), "context_dim": unet["cross_attention_dim"],
            "use_checkpoint": False, "legacy": False, **counted}


def _vae_config(shapes: dict, target: str) -> dict:
    vae = shapes["vae"]
    widths = vae["block_out_channels"]
    return {"target": target, "params": {"embed_dim": vae["latent_channels"], "monitor": "val/rec_loss", "lossconfig": {"target": "torch.nn.Identity"},
            "ddconfig": {"double_z": True, "z_channels": vae["latent_channels"], "resolution": 256, "in_channels": vae["in_channels"],
                         "out_ch": vae["out_channels"], "ch": widths[0], "ch_mult": [width // widths[0] for width in widths],
                         "num_res_blocks": vae["layers_per_block"], "attn_resolutions": [], "dropout": 0.0}}}
