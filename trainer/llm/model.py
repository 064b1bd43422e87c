"""Base, tokenizer and adapter, through transformers, peft and (for fewer bits) bitsandbytes."""
from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..settings import nearest
from .config import ALL_LINEAR, LanguageConfig
from .quantised import quantised_by
from .tokens import Collator, Rows, Sample

log = logging.getLogger(__name__)
PROBE = 32
"""Tokens of a sample that tell whether it is seen by the next one."""
SEEN = 0.1
"""Share of the logits' spread by which they differ then at least; rounding to bfloat16 is a few hundredths."""
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, with a token to fill rows up with. ValueError when there is none that tells where its tokens lie in the text."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each kind of tokenizer fails in its own way
        raise ValueError(f"the tokenizer of {folder} cannot be loaded ({_first_line(error)}); copy tokenizer.json and tokenizer_config.json into "
                         "the folder") from None
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of {folder} has no tokenizer.json, which tells where each token lies in the text; add that file")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def check_bits(load_in: str | None, device: torch.device, optimizer: str = "adamw") -> None:
    """ValueError, before anything is loaded, when bitsandbytes is wanted and cannot be had."""
    wanted = f"load_in is {load_in}" if load_in else f"optimizer is {optimizer}"
    if load_in is None and "8bit" not in optimizer:
        return
    if not find_spec("bitsandbytes"):
        raise ValueError(f"{wanted}, which needs the package bitsandbytes; install it with `pip install bitsandbytes`, or "
                         f"{'remove load_in' if load_in else 'set optimizer: adamw'}")
    if device.type not in ("cuda", "xpu", "cpu") or (load_in is None and device.type == "cpu"):
        raise ValueError(f"{wanted}, which bitsandbytes cannot do on {device.type}; use a CUDA GPU, or "
                         f"{'remove load_in' if load_in else 'set optimizer: adamw'}")


def load_base(folder: Path, device: torch.device, dtype: torch.dtype, load_in: str | None = None) -> Any:
    """The frozen base on `device`, its weights in `dtype` (4 or 8 bits with `load_in`). ValueError says what is wrong with the folder."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "dtype": dtype}
    quantised = quantised_by(folder)
    if load_in:
        options["quantization_config"] = quantization(load_in, dtype)
    if load_in or quantised:
        options["device_map"] = {"": device}
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(str(folder), output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        advice = "set load_in: null to see whether the base itself loads" if load_in else "copy the whole folder again"
        raise ValueError(f"the base {folder} cannot be loaded ({type(error).__name__}: {_first_line(error)}); {advice}") from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(f"the base {folder} lacks {len(missing)} of its weights, such as {missing[0]}; copy the whole folder again")
    model.requires_grad_(False)
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # bitsandbytes else lays 4-bit weights out anew for the first question to a model that is not in training, and that layout has no backward
            layer.support_avx512bf16_for_cpu = False
    return model if load_in or quantised else model.to(device)


@torch.no_grad()
def check_packing(model: Any, rows: Rows, collate: Collator) -> None:
    """ValueError for a model that sees across the samples of one row, found out on the first two that share one.

    transformers keeps them apart in rotary attention. Layers that recur or convolve along the row read on, and so does attention with ALiBi or with
    positions that it counts by itself.
    """
    shared = next((row for row in rows.rows if len(row) > 1), None)
    if shared is None:
        return
    pair = [Sample(sample.ids[:PROBE], sample.labels[:PROBE]) for sample in shared[:2]]

    def logits(samples: list[Sample]) -> torch.Tensor:
        batch = {name: x.to(model.device) for name, x in collate([Rows([samples])[0]]).items() if name != "labels"}
        return model(**batch, use_cache=False).logits[0, -len(pair[1].ids):].float()

    alone_LV, beside_LV = logits(pair[1:]), logits(pair)
    spread_L = (alone_LV - alone_LV.mean(-1, keepdim=True)).norm(dim=-1)
    if not bool(((beside_LV - alone_LV).norm(dim=-1) < SEEN * spread_L).all()):
        raise ValueError(f"packing is true, but {type(model).__name__} reads across the records of one row, so that each would be learned with the others "
                         "before it; set packing: false")


def quantization(load_in: str, dtype: torch.dtype) -> Any:
    """QLoRA's 4 bits (NF4, twice quantized, 2305.14314), or LLM.int8() (2208.07339)."""
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def linear_layers(model: Any) -> list[str]:
    """The last parts of the names of the model's linear layers but for its output, sorted."""
    output = model.get_output_embeddings()
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules()
                   if module is not output and (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")})


def add_adapter(model: Any, config: LanguageConfig) -> Any:
    """The base with a new LoRA, or with the one of `init_lora`, ready to train; its weights are in float32. ValueError for layers that are not there."""
    from peft import LoraConfig, get_peft_model

    model.config.use_cache = False  # of no use in training, and with a cache transformers would not keep packed samples apart
    if config.init_lora:
        return _continued(model, config)
    targets: Any = config.target_modules
    if targets == [ALL_LINEAR]:
        targets = ALL_LINEAR
    else:
        known = linear_layers(model)
        names = [name for name, _ in model.named_modules()]
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                raise ValueError(f"target_modules names {target}, but this model has no such layer{nearest(target, known)}; it has "
                                 f"{', '.join(known)}, and {ALL_LINEAR} means all of them")
    torch.manual_seed(config.seed)
    alpha = config.lora_rank if config.lora_alpha is None else config.lora_alpha
    alpha = int(alpha) if float(alpha).is_integer() else alpha
    try:
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=config.lora_rank, lora_alpha=alpha, lora_dropout=config.lora_dropout,
                                                target_modules=targets, use_rslora=config.rslora, use_dora=config.dora, bias="none"))
    except ValueError as error:
        raise ValueError(f"target_modules is {', '.join(config.target_modules)}, which peft cannot train ({_first_line(error)}); name linear layers "
                         f"such as {', '.join(linear_layers(model)[:4])}") from None


def _continued(model: Any, config: LanguageConfig) -> Any:
    from peft import PeftConfig

    folder = Path(config.init_lora)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"init_lora is {folder}, which is no peft adapter folder (it has no adapter_config.json); give the folder that a run wrote")
    try:
        settings = PeftConfig.from_pretrained(str(folder), local_files_only=True)
        if hasattr(settings, "lora_dropout"):
            settings.lora_dropout = config.lora_dropout
        elif config.lora_dropout:
            log.warning("warning: lora_dropout has no effect here: the adapter of init_lora is no LoRA (%s)", settings.peft_type.value)
        return load_adapter(model, folder, is_trainable=True, config=settings)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"init_lora is {folder}, which does not fit this base ({_first_line(error)}); give an adapter that was trained on it") from None


def load_adapter(model: Any, folder: Path, **options: Any) -> Any:
    """The model with the adapter of a folder. ValueError for a LoRA of other layers than the model has."""
    from peft import PeftModel

    mapping = getattr(model, "_checkpoint_conversion_mapping", {})
    loaded = PeftModel.from_pretrained(model, str(folder), local_files_only=True, **options)
    if loaded.peft_config["default"].peft_type != "LORA":
        return loaded
    # only loading into an adapter that is there tells which weights found no place
    found = loaded.load_adapter(str(folder), "default", is_trainable=options.get("is_trainable", False), key_mapping=mapping, local_files_only=True)
    for keys, what in ((found.unexpected_keys, "it has {} weights for layers that the model lacks, such as {}"),
                       (found.missing_keys, "it lacks {} weights for layers of the model, such as {}")):
        wrong = [key.removeprefix("base_model.model.").replace(".default", "") for key in keys if "lora_" in key]
        if wrong:
            raise ValueError(what.format(len(wrong), wrong[0]))
    return loaded


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
