"""The training data of one run: pictures with captions, prepared as latents and text embeddings, drawn by (seed, step, sample)."""
from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Callable, Sequence

import torch

from .backend import Backend
from .buckets import choose_bucket
from .cache import CacheReport, LatentCache, TextCache, mask_hash
from .config import TrainConfig
from .extension_points import load_function
from .gallery import Example, Gallery, without_trigger
from .memory import encode_image
from .randomness import python_random
from .samples import SampleOrder

IN_MEMORY = 512
"""Prepared pictures, and captions, that are kept in memory; of more the rest is read again when its turn comes."""


def cache_folder(config: TrainConfig) -> Path:
    """Where what is prepared for a run is kept."""
    return Path(config.cache_dir or Path(config.output_dir) / "cache")


class Dataset:
    """Examples of a gallery, and of a second one for prior preservation, with what a step needs of them.

    Prior pictures are shown as often in total as the user's own (2208.12242), weighted by prior_loss_weight; of more than that each epoch
    shows others. Those of the gallery that are `held_out` are prepared, but no step shows them.
    """

    def __init__(self, config: TrainConfig, backend: Backend, gallery: Gallery, prior: Gallery | None = None, held_out: Sequence[Example] = ()) -> None:
        self.config, self.backend, self.gallery, self.held_out = config, backend, gallery, list(held_out)
        self.resolution = config.resolution or backend.resolution
        own_examples = [example for example in gallery.examples if example not in self.held_out]
        self.examples: list[Example] = [*own_examples, *(prior.examples if prior else [])]
        repeats, turns = [example.repeats for example in own_examples], 0
        own = sum(repeats)
        if prior and len(prior.examples) > own:
            repeats, turns = repeats + [0] * len(prior.examples), own
        elif prior:
            number = len(prior.examples)
            repeats += [own // number + (i < own % number) for i in range(number)]
        # earlier versions showed no more of the prior pictures than these, and their states are to go on
        self._fingerprinted = len(own_examples) + own
        self.sizes = [self.bucket_of(example) for example in self.examples]
        self.order = SampleOrder(self.sizes, repeats, config.batch_size * config.gradient_accumulation_steps, config.seed, turns)
        # now, as a mask that is removed during the run must not keep its state from being saved
        self.use = self._use()
        folder = cache_folder(config)
        self.latents = LatentCache(folder / "latents", backend.encoder_id, partial(encode_image, backend))
        self.texts = TextCache(folder / "texts", backend.text_id, backend.encode_text)
        self.trains_text = bool(config.text_encoder_target_modules)
        self.encodes_in_steps = self.trains_text or config.shuffle_tags
        self._loaded: dict[int, dict[str, torch.Tensor]] = {}
        self._embedded: dict[str, dict[str, torch.Tensor]] = {}

    def bucket_of(self, example: Example) -> tuple[int, int]:
        config = self.config
        step = max(config.bucket_step, self.backend.size_step) if self.resolution >= 64 else config.bucket_step
        return choose_bucket(example.width, example.height, self.resolution, step, config.upscale, config.bucketing)

    def prepare(self, steps: int, progress: Callable[[int, int], None] | None = None, part: tuple[int, int] = (0, 1)) -> dict[str, CacheReport]:
        """Encode what so many steps show and the cache has not yet; `part`: (index, of) for one of so many processes that share work and cache."""
        index, parts = part
        augmentation = load_function(self.config.augmentation, "augmentation") if self.config.augmentation else None
        shown = [self.examples[i] for i in self.order.shown_within(steps)]
        pictures = [*shown, *self.held_out]
        # equal pictures have one entry, which one process makes
        turns = {content: number % parts for number, content in enumerate(dict.fromkeys(e.content_hash for e in pictures))}
        reports = {"pictures": self.latents.prepare(
            [e for e in pictures if turns[e.content_hash] == index], self.bucket_of, self.config.crops, self.config.flip, self.config.seed,
            self.config.masks, augmentation, progress)}
        if not self.encodes_in_steps:
            reports["captions"] = self.texts.prepare(sorted({
                "", *(example.caption for example in pictures), *(self.drift_prompts() if self.config.validation else []),
                *self.preserved_captions(shown)})[index::parts])
        return reports

    def collate(self, batch: list[tuple[int, int]], step: int) -> dict[str, Any]:
        """Stack the samples of one batch: `z_BCHW`, `size_B6`, `weight_B`, `captions` and, with masks, `mask_B1HW`."""
        rows = []
        for number, index in batch:
            example, stored = self.examples[index], self._load(index)
            rng = python_random(self.config.seed, "sample", step, number)
            variant = rng.randrange(len(stored["z_VCHW"]))
            row = {"z_BCHW": stored["z_VCHW"][variant], "size_B6": stored["size_V6"][variant]}
            if "mask_V1HW" in stored:
                row["mask_B1HW"] = stored["mask_V1HW"][variant]
            rows.append((row, self.caption(example, rng), self.config.prior_loss_weight if example.is_prior else 1.0))
        if any("mask_B1HW" in row for row, _, _ in rows):
            for row, _, _ in rows:
                row.setdefault("mask_B1HW", torch.ones(1, *row["z_BCHW"].shape[1:]))
        data: dict[str, Any] = {key: torch.stack([row[key] for row, _, _ in rows]) for key in rows[0][0]}
        data["captions"] = [caption for _, caption, _ in rows]
        data["weight_B"] = torch.tensor([weight for _, _, weight in rows])
        return data

    def caption(self, example: Example, rng) -> str:
        """The caption as this sample shows it: left out now and then (2207.12598), its tags in a new order if asked for."""
        if rng.random() < self.config.caption_dropout:
            return ""
        if not self.config.shuffle_tags:
            return example.caption
        tags = [tag.strip() for tag in example.caption.split(",")]
        first, rest = tags[:self.config.keep_tags], tags[self.config.keep_tags:]
        rng.shuffle(rest)
        return ", ".join(first + rest)

    def condition(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """What the denoiser is told: from the cache, or encoded now where the text encoder learns or tags are shuffled."""
        if self.encodes_in_steps:
            return self.backend.encode_text(captions, grad=self.trains_text)
        found = [_kept(self._embedded, caption, self.texts.load) for caption in captions]
        return {key: x.to(self.backend.device) for key, x in self.backend.batch_text(found).items()}

    def _load(self, index: int) -> dict[str, torch.Tensor]:
        return _kept(self._loaded, index, lambda _: self.latents.load(self.examples[index]))

    def tag_counts(self) -> dict[str, int]:
        """How often each comma-separated part of the captions comes, most frequent first, at most 500."""
        counts = Counter(tag.strip() for example in self.gallery.examples for tag in example.caption.split(",") if tag.strip())
        return dict(counts.most_common(500))

    def preview_prompt(self) -> str:
        return self.config.trigger or next((e.caption for e in self.gallery.examples if e.caption), "")

    def drift_prompts(self) -> list[str]:
        """Prompts that training should not change: none at all, the class word, and captions of the gallery with that in the trigger's place."""
        config = self.config
        rest = [without_trigger(e.caption, config.trigger, config.class_word) if config.trigger.strip() else "" for e in self.gallery.examples]
        return ["", *[prompt for prompt in dict.fromkeys([config.class_word.strip(), *rest]) if prompt][:3]]

    def preserved_captions(self, examples: list[Example]) -> list[str]:
        """Captions that preservation_weight asks for."""
        config = self.config
        return [without_trigger(e.caption, config.trigger, config.class_word) for e in examples] if config.preservation_weight else []

    def fingerprint(self) -> str:
        """Changes with any picture or caption, not with where they lie."""
        facts = [[e.content_hash, e.caption, list(size)] for e, size in zip(self.examples[:self._fingerprinted], self.sizes)]
        return _hash(facts + [["held out", e.content_hash, e.caption] for e in self.held_out])

    def _use(self) -> str:
        """Changes with how often each picture is shown, which are prior ones, and their masks. Beside the fingerprint, as older states have that alone."""
        repeats = [*self.order.repeats, *(0 for _ in self.held_out)]
        return _hash([[e.content_hash, repeat, e.is_prior, mask_hash(e, self.config.masks)] for e, repeat in zip([*self.examples, *self.held_out], repeats)])


def _kept(store: dict[Any, dict[str, torch.Tensor]], key: Any, load: Callable[[Any], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """From memory, or loaded in the place of what has been there longest."""
    if key not in store:
        if len(store) >= IN_MEMORY:
            store.pop(next(iter(store)))
        store[key] = load(key)
    return store[key]


def _hash(facts: list) -> str:
    return hashlib.blake2b(json.dumps(facts, ensure_ascii=False).encode(), digest_size=16).hexdigest()
