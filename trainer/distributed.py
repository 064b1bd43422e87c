"""Where this process stands among several that train one LoRA, as torchrun, accelerate launch and their like tell it.

Nothing of torch's process groups is touched here: a process on its own, and every host, has `ALONE`.
"""
from __future__ import annotations

import json
import logging
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Mapping, TypeVar

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from .session import Session

log = logging.getLogger(__name__)
T = TypeVar("T")
Part = tuple[int, int]
"""(index, of): one of so many shares of a list."""
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""In which mpirun's kinds say how many processes they have started."""
WHOLE: Part = (0, 1)


class PeerFailed(ValueError):
    """Another process failed, or was lost. `quiet`: a third one says so to the user."""

    def __init__(self, message: str, quiet: bool = False) -> None:
        super().__init__(message)
        self.quiet = quiet


@dataclass(frozen=True)
class Place:
    """`rank` of `world` processes, `local_rank` of `local_world` on this machine; all count from 0."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def place_of(environment: Mapping[str, str] = os.environ) -> Place | None:
    """None for a process on its own. ValueError for variables that contradict each other."""
    if environment.get("WORLD_SIZE", "1") == "1":
        _look_for_others(environment)
        return None
    numbers = {}
    for name, default in (("RANK", None), ("WORLD_SIZE", None), ("LOCAL_RANK", "RANK"), ("LOCAL_WORLD_SIZE", "WORLD_SIZE")):
        value = environment.get(name) or (environment.get(default, "") if default else "")
        if not value.isdigit():
            raise ValueError(f"WORLD_SIZE is {environment['WORLD_SIZE']}, so this is one of several processes, but {name} is {value!r}; start with "
                             "`torchrun --nproc_per_node N train.py ...` or `accelerate launch`, or remove WORLD_SIZE")
        numbers[name] = int(value)
    place = Place(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"])
    if place.rank >= place.world or place.local_rank >= place.local_world:
        raise ValueError(f"RANK is {place.rank} of {place.world} and LOCAL_RANK {place.local_rank} of {place.local_world}; both count from 0, so "
                         "they must be lower; start with torchrun or accelerate launch, which set them")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise ValueError(f"WORLD_SIZE is {place.world}, but {name} is not set, where the processes meet; start with torchrun or "
                             "accelerate launch, which set it")
    return place


def _look_for_others(environment: Mapping[str, str]) -> None:
    """ValueError, or a warning, where a launcher was meant to start several, and this process knows of itself only."""
    count = next((environment[name] for name in MPI if environment.get(name, "1") != "1"), None)
    if count and not environment.get("WORLD_SIZE"):
        raise ValueError(f"mpirun has started {count} processes, which do not know of each other and would all write the same files; start them with "
                         "`torchrun --nproc_per_node N train.py ...` or `accelerate launch --multi_gpu --num_processes N train.py ...`")
    if environment.get("ACCELERATE_MIXED_PRECISION") and environment.get("MASTER_PORT") and "WORLD_SIZE" not in environment:
        log.warning("warning: accelerate launch was asked for several processes and has started one; add --multi_gpu, also where there is no GPU")


def check_image_launch(environment: Mapping[str, str] = os.environ) -> None:
    """ValueError when accelerate was told to cut the model into pieces, which only language models are."""
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if environment.get(variable, "").lower() in ("true", "1", "yes"):
            raise ValueError(f"accelerate is set to {name}, which is for language models; image models are trained data parallel, each process "
                             "with the whole base: start with `accelerate launch --multi_gpu`, or choose that in `accelerate config`")


def check_command(command: str) -> None:
    """ValueError for a command that several processes would each do for themselves."""
    if command != "train" and place_of() is not None:
        raise ValueError(f"only training is shared by several processes; start `python train.py {command} ...` without a launcher")


@contextmanager
def told_once(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """An error inside comes in every process; the first one of each machine tells it."""
    try:
        yield
    except ValueError as error:
        if environment.get("WORLD_SIZE", "1") != "1" and environment.get("LOCAL_RANK", environment.get("RANK", "0")) != "0":
            raise PeerFailed(str(error), quiet=True) from error
        raise


def tell_launcher(message: str) -> None:
    """torchrun and accelerate launch show why a process ended, if it leaves a note where they say."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": message, "timestamp": int(time.time())}, file)


def device_for(name: str, place: Place | None) -> str:
    """The device of one process. ValueError when all of them were told to take the same GPU."""
    if place is None:
        return name
    kind, _, number = name.partition(":")
    if number and place.local_world > 1 and kind != "cpu":
        raise ValueError(f"device is {name}, but each of the {place.local_world} processes of this machine needs a GPU of its own; set device: auto")
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{place.local_rank % torch.cuda.device_count()}"
    return name


class Alone:
    """One process. `Ranks` has the same members, for several."""

    rank, world, is_writer = 0, 1, True
    place: Place | None = None

    def together(self, work: Callable[[], T]) -> T:
        """`work()` in every process; an error in one of them ends all."""
        return work()

    def leaders_first(self, work: Callable[[bool], T]) -> T:
        """`work(True)` where something may be made that the others then find, after that `work(False)` in these."""
        return work(True)

    def shared(self, folder: Path, work: Callable[[Part], dict[str, Any]]) -> dict[str, Any]:
        """What `work` makes in `folder` is made once: each process does its part, then looks at the whole."""
        return work(WHOLE)

    def session(self, *arguments: Any, **options: Any) -> Session:
        """The session of this process."""
        from .session import Session

        return Session(*arguments, **options)

    def same_values(self, tensors: Iterable[torch.Tensor]) -> None:
        """All have the tensors of the first process."""

    def check_same(self, facts: dict[str, Any]) -> None:
        """ValueError that names what differs between processes."""


ALONE = Alone()


@contextmanager
def joined() -> Iterator[Alone]:
    """With the other processes that the launcher has started, if it has; the group is left on exit."""
    place = place_of()
    if place is None:
        yield ALONE
        return
    from .ranks import Ranks

    ranks = Ranks(place)
    try:
        yield ranks
    finally:
        ranks.leave()
