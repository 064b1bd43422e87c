"""Tables from the results of bench/quality.py: scores over steps, how fast ours gets where the plain recipe ends, and where the stop rule stops."""
from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from hotlora.trainer.validate import Measurement, Progress

SHOWN = (50, 100, 150, 200, 400)
NEAR = 3.0
"""Points of concept + prompt score below the best of a whole run that count as having stopped right."""
BALANCED, PLAIN, LONG = "balanced", "plain", "balanced x5"


def curve(run: dict[str, Any], step: float, score: str) -> float:
    """A score after that many steps, on straight lines between those that were measured; NaN beyond the run's end."""
    steps = [row["step"] for row in run["curve"]]
    return float(np.interp(step, steps, [row[score] for row in run["curve"]], right=np.nan)) if step >= steps[0] else float("nan")


def sums(run: dict[str, Any]) -> list[float]:
    return [row["concept"] + row["prompt"] for row in run["curve"]]


def stop_of(run: dict[str, Any], every: int = 25, alone: bool = False) -> tuple[int, int]:
    """Which step the product's own rule keeps, and after which it stops, measuring every so many steps; `alone` without the held-out pictures, by the
    drift. The loss is the mean of each item's share of the base's, where a run takes the share of the sums."""
    progress = Progress()
    for row in run["watched"]:
        if row["step"] % every:
            continue
        progress.add(Measurement(row["step"], None if alone else float(np.mean(row["held_out"])) - 1, float(np.mean(row["drift"]))))
        if progress.is_over(run["steps"]):
            break
    stopped = progress.measurements[-1].step
    return progress.best or stopped, stopped


RULES = {"held-out loss, every 25": {}, "held-out loss, every 150": {"every": 150}, "prior drift alone, every 25": {"alone": True}}


def stops(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per watched run: what each rule keeps, its distance in points from the best of the whole run, and that of the last step."""
    rows = []
    for run in runs:
        if not run["watched"] or "held_out" not in run["watched"][0]:
            continue
        total, kept = sums(run), {}
        for name, options in RULES.items():
            step, stopped = stop_of(run, **options)
            kept[name] = {"kept": step, "stopped": stopped, "behind": max(total) - curve(run, step, "concept") - curve(run, step, "prompt")}
        kept["the last step"] = {"kept": run["steps"], "stopped": run["steps"], "behind": max(total) - total[-1]}
        rows.append({"concept": run["concept"], "seed": run["seed"], "steps": run["steps"], "best": max(total),
                     "best_step": run["curve"][int(np.argmax(total))]["step"], "rules": kept})
    return rows


def first_at(run: dict[str, Any], concept: float) -> int | None:
    """The first measured step with at least that concept score."""
    return next((row["step"] for row in run["curve"] if row["concept"] >= concept), None)


def races(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each plain run: when ours, same concept and seed, first has its best concept score, and both prompt scores there."""
    by_key = {(run["recipe"], run["concept"], run["seed"]): run for run in runs}
    rows = []
    for run in runs:
        key = (run["concept"], run["seed"])
        ours = by_key.get((BALANCED, *key)) or by_key.get((LONG, *key))
        if run["recipe"] != PLAIN or ours is None:
            continue
        best = max(run["curve"], key=lambda row: (row["concept"], -row["step"]))
        step = first_at(ours, best["concept"])
        prompt = curve(ours, step, "prompt") if step else None
        rows.append({"concept": key[0], "seed": key[1], "plain_best": best["concept"], "plain_step": best["step"], "plain_prompt": best["prompt"], "our_step": step,
                     "our_prompt": prompt, "reached": bool(step and 2 * step <= best["step"] and prompt >= best["prompt"])})
    return rows


def score_rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    """Per recipe and concept the means of its seeds, `concept / prompt`."""
    rows = []
    for key in dict.fromkeys((run["recipe"], run["concept"]) for run in sorted(runs, key=lambda run: (run["concept"], run["recipe"]))):
        group = [run for run in runs if (run["recipe"], run["concept"]) == key]
        cells = []
        for step in SHOWN:
            pairs = [(curve(run, step, "concept"), curve(run, step, "prompt")) for run in group]
            cells.append("" if any(np.isnan(pairs).ravel()) else " / ".join(f"{one:.0f}" for one in np.mean(pairs, axis=0)))
        rows.append([key[1], key[0], str(len(group)), *cells, f"{np.mean([run['seconds_per_step'] for run in group]):.3f}"])
    return rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def report(options: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    chosen = [run for run in runs if run["recipe"] in options.recipes and run["concept"] in options.concepts and run["seed"] in options.seeds]
    stopped, raced = stops(chosen), races(chosen)
    if options.json:
        print(json.dumps({"stops": stopped, "races": raced, "runs": chosen}))
        return
    print(markdown(["Concept", "Recipe", "Seeds", *(f"{step} steps" for step in SHOWN), "CPU s/step"], score_rows(chosen)), end="\n\n")
    print(markdown(["Concept", "Seed", "Plain's best", "at step", "its prompt score", "Ours there at step", "prompt score", "Reached"], [
        [r["concept"], str(r["seed"]), f"{r['plain_best']:.0f}", str(r["plain_step"]), f"{r['plain_prompt']:.0f}", str(r["our_step"] or "never"),
         "" if r["our_prompt"] is None else f"{r['our_prompt']:.0f}", "yes" if r["reached"] else "no"] for r in raced]), end="\n\n")
    if not stopped:
        return
    names = list(stopped[0]["rules"])
    print(markdown(["Concept", "Seed", "Best sum", "at step", *(f"{name}: kept (stopped), behind" for name in names)], [
        [r["concept"], str(r["seed"]), f"{r['best']:.0f}", str(r["best_step"]),
         *(f"{one['kept']} ({one['stopped']}), {one['behind']:.1f}" for one in r["rules"].values())] for r in stopped]), end="\n\n")
    for name in names:
        behind, ends = ([r["rules"][name][key] for r in stopped] for key in ("behind", "stopped"))
        print(f"- {name}: within {NEAR:g} points of the best in {sum(one <= NEAR for one in behind)} of {len(behind)} runs, {np.mean(behind):.1f} behind on average, "
              f"{max(behind):.1f} at most; stopped after {np.mean(ends):.0f} steps on average.")
