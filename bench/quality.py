"""How well the presets learn, and where the stop rule stops: scores over steps for four concepts on the embedded base.

    python bench/quality.py run                        every recipe of the plan that is not in the results yet (hours on 2 cores)
    python bench/quality.py run --recipes plain balanced --concepts thing --seeds 0
    python bench/quality.py report                     tables from the results; --json for one object
    python bench/quality.py check                      the judges on drawn pictures, on the same through the autoencoder, and on the base

Each finished run adds one line to the results file, so a run of this program can be ended at any time and goes on where it was. Two
processes share the work with `--part 0/2` and `--part 1/2`.
"""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import __init__  # noqa: E402, F401  registers the project as the package `hotlora`
import torch  # noqa: E402

from hotlora.trainer.backend import SampleRequest  # noqa: E402
from hotlora.trainer.config import TrainConfig  # noqa: E402
from hotlora.trainer.run import make_session, read_material  # noqa: E402
from hotlora.trainer.session import Listener  # noqa: E402
from quality_concepts import CONCEPTS, OTHERS, Concept, draw_banded, draw_golden, scene_score  # noqa: E402
from quality_recipes import RECIPES, Recipe  # noqa: E402
from quality_watch import Watch  # noqa: E402

SAMPLING_STEPS, BATCH = 6, 20
SEEDS = (0, 1, 2)
CHECKPOINTS = 9
"""How often a run is scored, more densely in its first third."""
EVERY = 25
"""Steps between two measurements of what the stop rule sees."""


def scored_at(steps: int) -> list[int]:
    """Steps after which pictures are drawn and judged."""
    shares = [(i / CHECKPOINTS) ** 1.4 for i in range(1, CHECKPOINTS + 1)]
    return sorted({max(EVERY, round(steps * share / EVERY) * EVERY) for share in shares})


class Scorer(Listener):
    """Draws pictures of fixed prompts and seeds while a run goes on, and judges them. `curve` has one row per checkpoint."""

    def __init__(self, concept: Concept, at: list[int], watch: Watch | None = None) -> None:
        self.concept, self.at, self.watch, self.curve, self.seconds = concept, set(at), watch, [], 0.0

    def stepped(self, session, report) -> None:
        if self.watch is not None and session.step % EVERY == 0:
            self.watch.measure(session)
        if session.step in self.at:
            began = time.process_time()
            with session._final_weights():
                self.curve.append({"step": session.step, **score(session.backend, self.concept)})
            self.seconds += time.process_time() - began


def score(backend, concept: Concept) -> dict[str, float]:
    """Concept score over prompts with the trigger; prompt score is the mean of what else those ask for, and of prompts without it."""
    pictures = draw(backend, [prompt for prompt, _ in concept.prompts], 1000)
    judged = [concept.judge(picture, scene) for picture, (_, scene) in zip(pictures, concept.prompts)]
    others = [scene_score(picture, scene) for picture, scene in zip(draw(backend, [s.caption for s in OTHERS], 2000), OTHERS)]
    learned, beside = (sum(column) / len(judged) for column in zip(*judged))
    kept = sum(others) / len(others)
    return {"concept": round(100 * learned, 2), "prompt": round(50 * (beside + kept), 2), "beside": round(100 * beside, 2), "kept": round(100 * kept, 2)}


def draw(backend, prompts: list[str], first_seed: int) -> list:
    seeds = tuple(range(first_seed, first_seed + len(prompts)))
    return backend.sample(SampleRequest(prompts=tuple(prompts), seeds=seeds, steps=SAMPLING_STEPS, batch=BATCH))


def run_one(backend, recipe: Recipe, concept: Concept, seed: int, folder: Path) -> dict:
    """Train and score one run; returns its line of the results."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        settings = recipe.settings(folder, concept)
        config = TrainConfig(train_data_dir=str(folder / concept.name), output_dir=output, cache_dir=str(folder / "cache"), name="x", trigger="sks", seed=seed,
                             tensorboard=False, state_minutes=0, validation=recipe.watched, early_stop=False, **settings)
        watch = Watch() if recipe.watched else None
        scorer = Scorer(concept, scored_at(config.steps), watch)
        session = make_session(read_material(config, make_captions=False), backend, [scorer])
        if watch:
            session.validation.interval = lambda total_steps: total_steps  # the watch measures instead, and more
        recipe.prepare(session)
        began = time.process_time()
        session.train()
        spent = time.process_time() - began - scorer.seconds
    return {"recipe": recipe.name, "concept": concept.name, "seed": seed, "steps": config.steps, "settings": settings, "curve": scorer.curve,
            "seconds_per_step": round(spent / config.steps, 4), "watched": watch.rows if watch else None}


def run_all(options: argparse.Namespace) -> None:
    from hotlora.trainer.hosts.standalone import load_base

    torch.set_num_threads(1)
    folder, results = options.folder, options.folder / "results.jsonl"
    backend = load_base("demo", "cpu")
    prepare(folder, backend)
    part, parts = map(int, options.part.split("/"))
    plan = [(recipe, concept, seed) for recipe in options.recipes for seed in options.seeds for concept in options.concepts]
    for recipe, concept, seed in plan[part::parts]:
        key = f"{recipe} {concept} {seed}"
        if key in {f"{r['recipe']} {r['concept']} {r['seed']}" for r in read(results)}:
            continue
        began = time.monotonic()
        row = run_one(backend, RECIPES[recipe], CONCEPTS[concept], seed, folder)
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        last = row["curve"][-1]
        print(f"{key}: concept {last['concept']:.1f}, prompt {last['prompt']:.1f} after {row['steps']} steps, {time.monotonic() - began:.0f} s", flush=True)


def prepare(folder: Path, backend) -> None:
    """Galleries, and pictures that the base draws itself for prior preservation."""
    from hotlora.trainer.demo.run_demo import write_prior

    for concept in CONCEPTS.values():
        if not (folder / concept.name / "metadata.csv").exists():
            concept.write(folder / concept.name)
    if not (folder / "prior" / "metadata.jsonl").exists():
        write_prior(backend, folder / "prior", 96)


def read(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []


def check() -> None:
    """Judges on real pictures of the concept, on those through the autoencoder, and on what the base draws for the prompts."""
    import random

    from hotlora.trainer.demo.drawings import draw_mascot
    from hotlora.trainer.hosts.standalone import load_base
    from hotlora.trainer.pixels import to_picture, to_tensor
    from quality_concepts import draw_ice_cream

    torch.set_num_threads(1)
    backend = load_base("demo", "cpu")
    drawers = {"thing": lambda s, r: draw_ice_cream(r, s.background), "character": lambda s, r: draw_mascot(r, s.background),
               "texture": draw_banded, "palette": draw_golden}
    for name, concept in CONCEPTS.items():
        rng = random.Random(1)
        real = [drawers[name](scene, rng) for _, scene in concept.prompts]
        z_BCHW = backend.encode_image(torch.stack([to_tensor(p) for p in real]))
        decoded = [to_picture(backend.decode_image(z_BCHW[i:i + 1])[0]) for i in range(len(real))]
        for what, pictures in (("drawn", real), ("through the autoencoder", decoded)):
            judged = [concept.judge(picture, scene) for picture, (_, scene) in zip(pictures, concept.prompts)]
            print(name, what, [round(100 * sum(column) / len(judged), 1) for column in zip(*judged)])
        print(name, "by the base", score(backend, concept), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report", "check"))
    parser.add_argument("--folder", type=Path, default=ROOT / "output" / "quality")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--concepts", nargs="+", choices=CONCEPTS, default=list(CONCEPTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "run":
        run_all(options)
    elif options.what == "check":
        check()
    else:
        from quality_report import report

        report(options, read(options.folder / "results.jsonl"))


if __name__ == "__main__":
    main()
