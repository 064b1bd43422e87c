"""HotLoRA in forks that load models and LoRAs in a way of their own: a tab that says where to train instead."""
from __future__ import annotations

import html
import sys
from pathlib import Path
from typing import Any

import gradio as gr
from modules import script_callbacks, shared
from modules.paths_internal import models_path

TITLE, TAB = "HotLoRA", "hotlora"
ROOT = Path(__file__).resolve().parent.parent.parent


def kind() -> str:
    """"webui", "forge" or "reforge", in which HotLoRA trains; "" in another fork, which it does not know."""
    # loaded, not only there: a change from a fork to the webui in the same folder can leave the package's folder behind
    if "modules_forge" not in sys.modules:
        return "webui"
    try:
        if "ldm_patched" not in sys.modules:
            from . import forge  # noqa: F401

            return "forge"
        # not in forks of Forge's first year, whose blocks add in place and whose patchers keep weights in another form
        from ldm_patched.modules import patcher_extension  # noqa: F401

        from . import reforge  # noqa: F401

        return "reforge"
    except (ImportError, AttributeError):
        return ""


def register() -> None:
    """What `scripts/hotlora.py` calls in place of the extension's own `register`, also at each reload of the UI."""
    script_callbacks.remove_callbacks_for_function(tab)
    script_callbacks.on_ui_tabs(tab)
    print(f"HotLoRA: {sentences()['en']}", flush=True)


def sentences() -> dict[str, str]:
    """What works and where, by language."""
    checkpoints = shared.cmd_opts.ckpt_dir or Path(models_path) / "Stable-diffusion"
    loras = getattr(shared.cmd_opts, "lora_dir", None) or Path(models_path) / "Lora"
    command = f'python train.py ui --base "{checkpoints}"'
    return {
        "en": "it trains inside stable-diffusion-webui 1.10, Forge and reForge, and not inside this fork of them, which keeps models and LoRAs in another way. Train on "
              f"the same checkpoint file on HotLoRA's own page: {command} in {ROOT}, with Python packages of its own (README.md says how). The LoRA file that it writes into "
              f"its output/loras works here as any other once it lies in {loras}.",
        "zh": "HotLoRA 在 stable-diffusion-webui 1.10、Forge 和 reForge 里训练，不能在这个分支里训练，因为它以另外的方式保存模型和 LoRA。请在 HotLoRA 自己的页面上用同一个检查点文件训练："
              f"在 {ROOT} 里运行 {command}（使用单独的 Python 环境，见 README.zh-CN.md）。写在 output/loras 里的 LoRA 文件放进 {loras} 后，在这里和其他 LoRA 一样使用。"}


def tab() -> list[tuple[Any, str, str]]:
    told = sentences()
    with gr.Blocks(analytics_enabled=False) as container:
        gr.HTML(f'<p lang="en">{html.escape("HotLoRA: " + told["en"])}</p><p lang="zh">{html.escape(told["zh"])}</p>')
    return [(container, TITLE, TAB)]
