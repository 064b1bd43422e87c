"""What llama.cpp's converter makes of our adapters: HOTLORA_LLAMA_CPP names a folder of llama.cpp's sources."""
from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hotlora.bench.llm_world import random_base

SOURCES = Path(os.environ.get("HOTLORA_LLAMA_CPP", "nowhere"))
pytestmark = pytest.mark.skipif(not (SOURCES / "convert_lora_to_gguf.py").is_file(), reason="HOTLORA_LLAMA_CPP does not name llama.cpp's sources")


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Mistral", "Gemma"])
def test_every_layer_is_in_the_gguf_file(config, run_of, world, tmp_path, family):
    """The converter may reorder rows (LLaMA's rotary halves), so values are compared without their order."""
    base = random_base(tmp_path / family, world, family)
    lora = run_of(replace(config, base_model=str(base), target_modules="all-linear", learning_rate=0.02)).train().lora
    out = tmp_path / "lora.gguf"
    done = subprocess.run([sys.executable, str(SOURCES / "convert_lora_to_gguf.py"), "--base", str(base), "--outtype", "f32", "--outfile", str(out), str(lora)],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(SOURCES / "gguf-py"))
    import gguf

    reader = gguf.GGUFReader(out)
    assert float(reader.get_field("adapter.lora.alpha").contents()) == 4 and reader.get_field("adapter.type").contents() == "lora"
    ours = sorted(np.sort(tensor.ravel()).tobytes() for tensor in load_file(str(lora / "adapter_model.safetensors")).values())
    assert ours == sorted(np.sort(np.array(tensor.data).ravel()).tobytes() for tensor in reader.tensors) and len(ours) == 28
