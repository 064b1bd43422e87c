"""Several processes as one: what they add up, hand on and wait for, with torch.distributed.

Gradients go through NCCL where every process has a GPU of its own, else through gloo and main memory; everything else goes through gloo.
Nothing waits blindly: each wait ends as soon as the roll call knows that somebody is missing.
"""
from __future__ import annotations

import logging
import os
import pickle
import socket
import time
import traceback
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, TypeVar

import torch
import torch.distributed as dist

from .distributed import WHOLE, Alone, Part, PeerFailed, Place
from .roll_call import Failure, RollCall
from .. import __version__

if TYPE_CHECKING:
    from .adapter import Adapter
    from .backend import Backend
    from .config import TrainConfig
    from .dataset import Dataset
    from .session import Session

log = logging.getLogger(__name__)
T = TypeVar("T")
MEETING = timedelta(minutes=10)
"""How long the processes wait for each other at the start."""
OF_A_MACHINE = {"train_data_dir", "metadata_path", "reg_data_dir", "base_model", "init_lora", "output_dir", "lora_dir", "cache_dir", "device",
                "caption_model", "augmentation", "loss_term"}
"""Settings that may differ between machines: where things lie. What lies there is compared."""
FOREVER = timedelta(days=30)
"""The first process may draw or measure for as long as it takes; whether it lives is what the roll call watches."""


class Ranks(Alone):
    """The process of `place` among the others, met at MASTER_ADDR:MASTER_PORT."""

    def __init__(self, place: Place) -> None:
        self.place, self.rank, self.world = place, place.rank, place.world
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        _choose_interface(address, place)
        try:
            store, _, _ = next(dist.rendezvous("env://", timeout=MEETING))
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.world, timeout=FOREVER)
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(f"process {self.rank} did not meet the other {self.world - 1} at {address}:{port} ({str(error).splitlines()[0]}); "
                             "start all of them, with the same address and port, and let these pass the firewall") from error
        self._gpus: Any = None
        self._group: list[int] = list(range(self.world))
        run = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.roll = RollCall(address, port, run, self.rank, self.world)
        self.roll.start(self.gather((socket.gethostname(), os.getpid())))

    @property
    def is_writer(self) -> bool:
        """Whether this process writes what the run makes: the first, or after its loss the one that speaks for the rest and sees its folder."""
        failure = self.roll.failure
        if failure and failure.lost and failure.speaker == self.rank:
            return self.rank == 0 or 0 in self._group
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this process tells the user what went wrong; one that failed by itself does where the speaker's words are not seen."""
        failure = self.roll.failure
        if failure is None or self.rank == failure.speaker:
            return failure is not None or self.rank == 0
        people = self.roll.people
        return self.rank == failure.rank and people[self.rank][0] != people[failure.speaker][0]

    def use_gpus(self, device: torch.device) -> None:
        """Settle how gradients travel; to be called once, when every process has chosen its device."""
        own = device.type == "cuda" and self.place.local_world <= torch.cuda.device_count()
        if all(self.gather(own)):
            torch.cuda.set_device(device)
            self._gpus = dist.new_group(backend="nccl", timeout=FOREVER)
        elif device.type == "cuda" and self.rank == 0:
            log.warning("warning: %d processes share %d GPUs; one for each GPU is faster", self.place.local_world, torch.cuda.device_count())

    def total(self, flat: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' `flat`, which may be overwritten; the same bits in all of them."""
        if self._gpus is not None and flat.is_cuda:
            self._wait(dist.all_reduce(flat, group=self._gpus, async_op=True))
            return flat
        on_cpu = flat.cpu()
        self._wait(dist.all_reduce(on_cpu, async_op=True))
        return on_cpu.to(flat.device)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank. Pickled: they are processes of one run."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.world)]
        self._wait(dist.all_gather(sizes, torch.tensor([len(data)]), async_op=True))
        most = max(int(size) for size in sizes)
        rows = [torch.zeros(most, dtype=torch.uint8) for _ in range(self.world)]
        self._wait(dist.all_gather(rows, torch.cat([data, torch.zeros(most - len(data), dtype=torch.uint8)]), async_op=True))
        return [pickle.loads(row[:int(size)].numpy().tobytes()) for row, size in zip(rows, sizes)]

    def from_first(self, work: Callable[[], T]) -> T:
        """`work()` in the first process alone; all get its result, or learn of its error."""
        result, error = None, None
        if self.rank == 0:
            try:
                result = work()
            except Exception as its_own:
                error = its_own
        data = pickle.dumps((result, None if error is None else str(error)))
        size = torch.tensor([len(data)])
        self._wait(dist.broadcast(size, 0, async_op=True))
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.rank == 0 else torch.zeros(int(size), dtype=torch.uint8)
        self._wait(dist.broadcast(buffer, 0, async_op=True))
        if error is not None:
            raise error
        result, said = (result, None) if self.rank == 0 else pickle.loads(buffer.numpy().tobytes())
        if said is not None:
            raise PeerFailed(f"{self.roll.name(0)} failed: {said}", quiet=True)
        return result

    def together(self, work: Callable[[], T]) -> T:
        result, error = None, None
        try:
            result = work()
        except Exception as its_own:
            if isinstance(its_own, PeerFailed) and self.roll.failure is not None:
                raise
            error = its_own
        said = self.gather(None if error is None else str(error))
        first = next((rank for rank, text in enumerate(said) if text is not None), None)
        if first == self.rank:
            raise error
        if first is not None:
            raise PeerFailed(f"{self.roll.name(first)} failed: {said[first]}", quiet=True) from error
        return result

    def leaders_first(self, work: Callable[[bool], T]) -> T:
        result = self.together(lambda: work(True) if self.rank == 0 else None)
        # the first of every other machine, whose disk may be another one
        leads = self.place.local_rank == 0 and self.rank != 0
        made = self.together(lambda: work(True) if leads else None)
        rest = self.together(lambda: None if leads or self.rank == 0 else work(False))
        return result if self.rank == 0 else made if leads else rest

    def shared(self, folder: Path, work: Callable[[Part], dict[str, Any]]) -> dict[str, Any]:
        self._group = self._who_sees(folder)
        made: dict[str, Any] = {}
        if len(self._group) > 1:
            made = self.together(lambda: work((self._group.index(self.rank), len(self._group))))
        found = self.together(lambda: work(WHOLE))
        for reports in self.gather(made) if made else []:
            for what, report in reports.items():
                found[what].encoded += report.encoded
                found[what].reused -= report.encoded
                found[what].repaired += report.repaired
        return found

    def _who_sees(self, folder: Path) -> list[int]:
        """The ranks whose `folder` is the same as this one's, on a disk that they share: a machine's own, or one of the network."""
        rest, group = list(range(self.world)), []
        while rest:
            token = f".meeting-{rest[0]}-{self.gather(uuid.uuid4().hex)[0]}.tmp"
            mark = folder / token

            def leave_mark() -> None:
                folder.mkdir(parents=True, exist_ok=True)
                mark.write_bytes(b"")

            try:
                self.together(lambda: leave_mark() if self.rank == rest[0] else None)
                # a listing is asked of the server, while network disks may answer from memory that a single file is not there
                seen = self.gather(folder.is_dir() and token in os.listdir(folder))
            finally:
                if self.rank == rest[0]:
                    mark.unlink(missing_ok=True)
            together = [rank for rank in rest if seen[rank]]
            group = together if self.rank in together else group
            rest = [rank for rank in rest if rank not in together]
        return group

    def session(self, config: TrainConfig, backend: Backend, dataset: Dataset, adapter: Adapter, **options: Any) -> Session:
        """ValueError when the processes were not given the same, or cannot share a step."""
        from .shared_session import SharedSession, check_share

        self.together(lambda: check_share(config.batch_size, config.gradient_accumulation_steps, self.world))
        self.use_gpus(backend.device)
        settings = {key: value for key, value in config.to_dict().items() if key not in OF_A_MACHINE}
        self.check_same({"the settings": settings, "the pictures and captions": dataset.fingerprint(), "the repeats and masks": dataset.use,
                         "the weights of the base": backend.base_hash, "the versions of HotLoRA": __version__, "the versions of torch": torch.__version__})
        return SharedSession(config, backend, dataset, adapter, ranks=self, **options)

    def same_values(self, tensors: Iterable[torch.Tensor]) -> None:
        with torch.no_grad():
            for tensor in tensors:
                copy = tensor.detach().cpu().contiguous()
                self._wait(dist.broadcast(copy, 0, async_op=True))
                tensor.copy_(copy)

    def check_same(self, facts: dict[str, Any]) -> None:
        everywhere = self.gather(facts)
        for what, value in everywhere[0].items():
            other = next((rank for rank, theirs in enumerate(everywhere) if theirs.get(what) != value), None)
            if other is not None:
                message = f"{what} of {self.roll.name(other)} differ from those of {self.roll.name(0)}; all need the same, put them on both machines"
                raise ValueError(message) if self.rank == 0 else PeerFailed(message, quiet=True)

    def fail(self, error: BaseException) -> Failure:
        """Tell the others why this process leaves the run; a second reason changes nothing."""
        if isinstance(error, PeerFailed) and self.roll.failure:
            return self.roll.failure
        reason = "it was interrupted" if isinstance(error, KeyboardInterrupt) else f"{error or type(error).__name__}"
        return self.roll.fail(reason, "".join(traceback.format_exception(type(error), error, error.__traceback__)))

    def leave(self) -> None:
        """End the watch and the group; after a failure nobody waits for anybody."""
        self.roll.stop()
        if self.roll.failure is None:
            dist.destroy_process_group()

    def _wait(self, work: dist.Work) -> None:
        """Until `work` is done. PeerFailed as soon as it cannot be any more."""
        spins, pause = 200, 5e-5
        try:
            while not work.is_completed():
                self.roll.look_for_store()
                if self.roll.failure is not None:
                    raise self._lost()
                if spins:
                    spins -= 1
                    time.sleep(0)
                else:
                    time.sleep(pause)
                    pause = min(1e-3, 1.2 * pause)
            work.wait()
        except RuntimeError as error:
            self.roll.who(error)
            raise self._lost() from error

    def _lost(self) -> PeerFailed:
        failure = self.roll.failure
        error = PeerFailed(failure.message, quiet=self.rank != failure.speaker)
        error.__cause__ = RuntimeError("in the process that failed:\n" + failure.details) if failure.details else None
        return error


def _choose_interface(address: str, place: Place) -> None:
    """Let gloo use the network that leads to the meeting point; by itself it takes what the machine's own name stands for, which is
    often a loopback that no other machine can reach. A choice of the user's stands."""
    if os.environ.get("GLOO_SOCKET_IFNAME") or os.name != "posix":
        return
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            own = probe.getsockname()[0]
            if own.startswith("127.") and place.local_world < place.world:
                return
            for _, name in socket.if_nameindex():
                request = name.encode()[:15].ljust(256, b"\0")
                try:
                    found = socket.inet_ntoa(fcntl.ioctl(probe.fileno(), 0x8915, request)[20:24])  # SIOCGIFADDR of Linux
                except OSError:
                    continue
                if found == own:
                    os.environ["GLOO_SOCKET_IFNAME"] = name
                    return
    except (OSError, ImportError):
        return
