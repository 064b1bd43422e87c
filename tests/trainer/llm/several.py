"""What each process of a test runs: train.py, its gradients written down if a file is named, killed where the test wants it, its weights in pieces or not.

    torchrun ... several.py GRADIENTS KILLED_RANK KILLED_STEP ARGUMENTS OF train.py
"""
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import __init__  # noqa: E402, F401

gradients, killed_rank, killed_step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rank = int(os.environ.get("RANK", "0"))
if os.environ.get("HOTLORA_TEST_FSDP"):
    # accelerate turns FSDP on for processes that have GPUs; what it then does works on gloo and a CPU as well
    os.environ.update(ACCELERATE_TORCH_DEVICE="cpu", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
                      FSDP_RESHARD_AFTER_FORWARD="true")
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda self, cpu, sagemaker, backend=None: ("gloo", DistributedType.MULTI_GPU)

from hotlora.trainer.cli import main  # noqa: E402
from hotlora.trainer.llm import callbacks  # noqa: E402

pre_step, step_end = callbacks.Flow.on_pre_optimizer_step, callbacks.Flow.on_step_end


def on_pre_optimizer_step(self, args, state, control, model=None, **others):
    if state.global_step == 0 and gradients:
        sharded = sum(type(p).__name__ == "DTensor" for p in model.parameters())
        found = {name.removeprefix("module."): p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad.clone()
                 for name, p in model.named_parameters() if p.requires_grad}
        if rank == 0:
            torch.save({"gradients": found, "sharded": sharded}, gradients)
    return pre_step(self, args, state, control, model=model, **others)


def on_step_end(self, args, state, control, **others):
    if state.global_step == killed_step and rank == killed_rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return step_end(self, args, state, control, **others)


callbacks.Flow.on_pre_optimizer_step, callbacks.Flow.on_step_end = on_pre_optimizer_step, on_step_end
if __name__ == "__main__":
    sys.exit(main(sys.argv[4:]))
