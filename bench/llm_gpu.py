"""Memory and speed of language-model runs on a GPU, what was predicted beside what was measured: the base as it is, in 8 and in 4 bits.

    python bench/llm_gpu.py             a LLaMA of 1.1 billion random weights, in the shape of TinyLlama: about a minute on a fast GPU
    python bench/llm_gpu.py --tiny      a small one, to see that the bench runs; without a GPU memory is not measured
    python bench/llm_gpu.py --json      the same as a list of JSON objects

Each line is a run of train.py's own code, of 12 steps on the same rows, so that its loss must fall. "Predicted" is what the run says
before it begins; "measured" is the most that torch had allocated. Where bitsandbytes is not installed, its lines say so.
"""
from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import __init__  # noqa: E402, F401  registers the project as the package `hotlora`

from hotlora.bench.llm_world import World, make_tokenizer  # noqa: E402
from hotlora.trainer.llm.config import LanguageConfig  # noqa: E402

FULL = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4}
TINY = {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
VARIANTS = {"bf16": {}, "bf16, checkpointing": {"gradient_checkpointing": True}, "8 bits": {"load_in": "8bit"}, "4 bits": {"load_in": "4bit"},
            "4 bits, checkpointing": {"load_in": "4bit", "gradient_checkpointing": True}}
STEPS, BATCH, ROWS = 12, 4, 8


def make_base(folder: Path, shape: dict[str, int], device: Any) -> int:
    """A random LLaMA in bf16 as a transformers folder; the number of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=2)).to(torch.bfloat16)
    model.save_pretrained(str(folder))
    make_tokenizer(World().general_texts(300), vocabulary=1000).save_pretrained(str(folder))
    return sum(p.numel() for p in model.parameters())


def measure(name: str, base: Path, data: Path, folder: Path, length: int) -> dict[str, Any]:
    """One run: predicted and measured bytes, seconds of a step (median), loss of the first and the last step."""
    import torch
    from transformers import TrainerCallback

    from hotlora.trainer.llm.material import read_material
    from hotlora.trainer.llm.run import LanguageRun

    config = LanguageConfig(base_model=str(base), train_data_dir=str(data), output_dir=str(folder), name="bench", target_modules=["all-linear"], steps=STEPS,
                            batch_size=BATCH, max_length=length, learning_rate=1e-3, mixed_precision="bf16", log_every=1, tensorboard=False, state_minutes=0, **VARIANTS[name])
    gpu = torch.cuda.is_available()
    _free(torch)
    before = torch.cuda.memory_allocated() if gpu else 0
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **others: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    run = LanguageRun(read_material(config))
    began = time.perf_counter()
    run.load()
    loaded = time.perf_counter() - began
    _free(torch)
    make = run._make_trainer

    def make_and_watch() -> None:
        make()
        run.trainer.add_callback(Clock())

    run._make_trainer = make_and_watch
    outcome = run.train()
    assert outcome.status == "completed", outcome.message
    losses = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
    seconds = statistics.median(end - begin for begin, end in zip(ends[1:], ends[2:]))
    found = {"variant": name, "predicted": run.needs.total, "predicted_weights": run.needs.weights, "predicted_batch": run.needs.batch,
             "measured": torch.cuda.max_memory_allocated() - before if gpu else None, "load_seconds": loaded, "step_seconds": seconds,
             "tokens_per_second": BATCH * length / seconds, "first_loss": losses[0], "last_loss": losses[-1]}
    run.trainer = run.model = None
    return found


def _free(torch: Any) -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--length", type=int, default=None, help="tokens of a row (default: 1024, tiny 64)")
    options.add_argument("--json", action="store_true")
    options = options.parse_args()
    from hotlora.trainer.llm.offline import go_offline, quiet_libraries

    go_offline()
    quiet_libraries()
    import torch

    length = options.length or (64 if options.tiny else 1024)
    found, count = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        base, data = Path(scratch) / "base", Path(scratch) / "texts.jsonl"
        count = make_base(base, TINY if options.tiny else FULL, "cuda" if torch.cuda.is_available() else "cpu")
        texts = [" ".join(World(old=20, new=1).general_texts(length, seed=number)) for number in range(ROWS)]
        data.write_text("".join(json.dumps({"text": text[: 6 * length]}) + "\n" for text in texts), encoding="utf-8")
        for number, name in enumerate(VARIANTS):
            try:
                found.append(measure(name, base, data, Path(scratch) / str(number), length))
            except ValueError as error:
                found.append({"variant": name, "error": str(error)})
    print(json.dumps(found) if options.json else table(found, count, length, torch))


def table(found: list[dict[str, Any]], count: int, length: int, torch: Any) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [f"{device}, torch {torch.__version__}: {count / 1e9:.2f} billion weights, {BATCH} x {length} tokens, all-linear, rank 16", "",
             "| base | predicted GB | measured GB | predicted / measured | s/step | tokens/s | loss, first and last step |", "|---|---|---|---|---|---|---|"]
    for row in found:
        if "error" in row:
            lines.append(f"| {row['variant']} | {row['error']} |  |  |  |  |  |")
            continue
        measured = row["measured"]
        lines.append(f"| {row['variant']} | {row['predicted'] / 1e9:.2f} | {f'{measured / 1e9:.2f}' if measured else ''} | "
                     f"{row['predicted'] / measured if measured else 0:.2f} | {row['step_seconds']:.3f} | {row['tokens_per_second']:.0f} | "
                     f"{row['first_loss']:.2f}, {row['last_loss']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
