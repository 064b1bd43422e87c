"""One process of a run that several share, as a launcher starts it: `python inside_ranks.py ORDER.json`. What it saw is left beside the order.

ORDER is {"settings": ..., "out": folder for what was seen, and perhaps "stop_after": step, "stopper": rank, "resume": true, "fail": rank}.
"""
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import __init__  # noqa: E402, F401  registers the package

import torch  # noqa: E402

from hotlora.trainer.config import TrainConfig  # noqa: E402
from hotlora.trainer.distributed import joined  # noqa: E402
from hotlora.trainer.hosts.standalone import load_base  # noqa: E402
from hotlora.trainer.run import make_session, read_material  # noqa: E402
from hotlora.trainer.session import Listener  # noqa: E402

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Seen(Listener):
    """Gradients of every step, the samples of this process, what it encoded, and which files it opened for writing."""

    def __init__(self, folder: Path, order: dict) -> None:
        self.folder, self.order, self.gradients, self.samples, self.encoded, self.written = folder, order, [], [], 0, set()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self.written.add(os.path.abspath(arguments[0]))

    def watch_backend(self, backend) -> None:
        encode = backend.encode_image

        def encoding(x_B3HW):
            self.encoded += len(x_B3HW)
            return encode(x_B3HW)

        backend.encode_image = encoding

    def watch_session(self, session, rank: int) -> None:
        update, loss = session._update, session._loss

        def updating(*arguments):
            self.gradients.append(torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten().clone() for p in session.parameters]))
            return update(*arguments)

        def of_batch(batch):
            if self.order.get("fail") == rank and session.step == 1:
                raise ValueError("this process was told to fail")
            self.samples += [(session.step, number, index) for number, index in batch]
            return loss(batch)

        session._update, session._loss = updating, of_batch

    def keep(self, rank: int, world: int) -> None:
        torch.save({"rank": rank, "world": world, "gradients": self.gradients, "samples": self.samples, "encoded": self.encoded,
                    "written": sorted(self.written)}, self.folder / f"seen-{world}-{rank}.pt")


def main(order: dict) -> None:
    torch.set_num_threads(1)
    folder = Path(order["out"])
    seen = Seen(folder, order)
    config = TrainConfig.from_dict(order["settings"])
    with joined() as ranks:
        mine = replace(config, **order.get("of_rank", {}).get(str(ranks.rank), {}))
        material = ranks.leaders_first(lambda _: read_material(mine, make_captions=False))
        backend = ranks.together(lambda: load_base("demo", "cpu"))
        seen.watch_backend(backend)
        session = make_session(material, backend, [], ranks=ranks)
        if order.get("resume"):
            ranks.together(session.resume)
        seen.watch_session(session, ranks.rank)
        step = session.train_step

        def stepping():
            # each waits here to be killed or asked: the test sees that training has begun
            if session.step == 1:
                (folder / f"began-{ranks.rank}").write_bytes(b"")
            if session.step + 1 == order.get("stop_after") and ranks.rank == order.get("stopper", 0):
                session.stop()
            return step()

        session.train_step = stepping
        try:
            outcome = session.train()
            if ranks.is_writer:
                print(outcome.message)
        finally:
            seen.keep(ranks.rank, ranks.world)


if __name__ == "__main__":
    try:
        main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except ValueError as error:
        if not getattr(error, "quiet", False):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
