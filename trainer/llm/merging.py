"""The whole model with a LoRA worked in, for programs that take no adapters."""
from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ..output_files import OutputError, disk_full, put_folder
from .model import load_tokenizer


def write_merged(base: Path, adapter: Path, target: Path) -> Path:
    """Write `base` with `adapter` worked in as the transformers folder `target`, in the base's own number format.

    It is worked in in float32 on the CPU, so that a base that was trained in 4 bits loses nothing. A folder that is there already is
    kept as `-v1`. OutputError when it cannot be written.
    """
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    own = getattr(AutoConfig.from_pretrained(str(base), local_files_only=True), "dtype", None)
    model = AutoModelForCausalLM.from_pretrained(str(base), local_files_only=True, trust_remote_code=False, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapter), local_files_only=True).merge_and_unload(safe_merge=True)
    if isinstance(own, torch.dtype):
        model = model.to(own)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(str(temporary))
        load_tokenizer(adapter if (adapter / "tokenizer_config.json").is_file() else base).save_pretrained(str(temporary))
        put_folder(temporary, target)
    except Exception as error:
        if full := disk_full(target, error, sum(parameter.nbytes for parameter in model.parameters())):
            raise OutputError(f"{full}; the LoRA itself is {adapter}") from error
        if not isinstance(error, OSError):
            raise
        raise OutputError(f"{target} could not be written: {error.strerror or error}; set another output_dir, or merge: false") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
