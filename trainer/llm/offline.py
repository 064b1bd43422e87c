"""Nothing leaves the machine: libraries are told so before they are imported, and once more when they are."""
from __future__ import annotations

import os
import sys
import warnings

VARIABLES = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
             "DISABLE_TELEMETRY": "1", "WANDB_MODE": "disabled", "WANDB_DISABLED": "true", "COMET_MODE": "DISABLED", "TOKENIZERS_PARALLELISM": "false",
             "BNB_DISABLE_TELEMETRY": "1"}


def go_offline() -> None:
    """For this process and its children; what huggingface_hub read at its import is changed too."""
    os.environ.update({name: value for name, value in VARIABLES.items() if name != "TOKENIZERS_PARALLELISM"})
    os.environ.setdefault("TOKENIZERS_PARALLELISM", VARIABLES["TOKENIZERS_PARALLELISM"])
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = constants.HF_HUB_DISABLE_TELEMETRY = True


def quiet_libraries() -> None:
    """transformers says on the screen what the run says itself."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
