"""Everything that a stop rule could look at, item by item, so that rules can be tried afterwards without training again."""
from __future__ import annotations

import torch

from hotlora.trainer.validate import DRIFTS, STRATA, adapter_off


class Watch:
    """`rows` has one entry per measurement: losses of held-out and of trained pictures as shares of the base's (per picture and timestep), and how far the
    predictions have moved from the base's, for prompts without the trigger (`drift`) and with it (`moved`), as shares of those."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self._groups: dict[str, list] = {}

    def measure(self, session) -> None:
        validation, adapter = session.validation, session.adapter
        training = adapter.training
        adapter.eval()
        with torch.no_grad(), session._final_weights():
            if not self._groups:
                self._prepare(validation, adapter)
            row: dict = {"step": session.step}
            for name, items in self._groups.items():
                if not items:
                    continue
                outs = self._predict(validation, items)
                if name in ("held_out", "trained"):
                    row[name] = [round(validation._loss(item, out) / base, 4) for item, out, base in zip(items, outs, self._base_losses[name])]
                else:
                    row[name] = [round(((out - item.base_CHW).square().sum() / item.base_CHW.square().sum()).item(), 4) for item, out in zip(items, outs)]
        adapter.train(training)
        self.rows.append(row)

    def _prepare(self, validation, adapter) -> None:
        if validation._held_out is None:
            validation._prepare(adapter, lambda: None)
        dataset = validation.dataset
        own = [example for example in dataset.examples if not example.is_prior][:8]
        trained = [item for number, example in enumerate(own) for item in validation._items_of(example, 100 + number)]
        sizes, shape = dataset.sizes[0], dataset.latents.load(dataset.examples[0])["z_VCHW"].shape[1:]
        with adapter_off(adapter):
            moved = [validation._drift_item(100 + number, own[number].caption, sizes, shape) for number in range(min(4, len(own)))]
            more = [validation._drift_item(200 + number, dataset.drift_prompts()[number % len(dataset.drift_prompts())], sizes, shape) for number in range(DRIFTS)]
            self._groups = {"held_out": validation._held_out, "trained": trained, "drift": validation._drifting + more, "moved": moved}
            self._base_losses = {}
            for name, items in self._groups.items():
                for item, out in zip(items, self._predict(validation, items) if items else []):
                    item.base_CHW = out
                if name in ("held_out", "trained"):
                    self._base_losses[name] = [validation._loss(item, item.base_CHW) for item in items]
        assert len(self._groups["held_out"]) % STRATA == 0

    def _predict(self, validation, items: list) -> list[torch.Tensor]:
        """All at once, which is faster on a small base."""
        cond = validation.dataset.condition([item.caption for item in items])
        out = validation.backend.predict(torch.stack([item.z_t_CHW for item in items]), validation.objective.model_timestep(torch.cat([item.t for item in items])),
                                         cond, torch.stack([item.size_6 for item in items]))
        return list(out.float())
