"""bench/quality.py: its judges tell each concept from what the base would draw, and its tables from made-up runs."""
import random

import pytest

from hotlora.bench.quality_concepts import CONCEPTS, draw_banded, draw_golden, draw_ice_cream
from hotlora.bench.quality_report import RULES, markdown, races, score_rows, stops
from hotlora.trainer.demo.drawings import draw_mascot, draw_scene
from hotlora.trainer.demo.scenes import training_scene

DRAWERS = {"thing": lambda scene, rng: draw_ice_cream(rng, scene.background), "character": lambda scene, rng: draw_mascot(rng, scene.background),
           "texture": draw_banded, "palette": draw_golden}


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_judge_knows_its_concept_and_nothing_else(name):
    rng, concept = random.Random(0), CONCEPTS[name]
    own = [concept.judge(DRAWERS[name](scene, rng), scene) for _, scene in concept.prompts]
    assert all(sum(column) / len(own) > 0.9 for column in zip(*own))
    other = [concept.judge(draw_scene(training_scene(rng), rng), scene)[0] for _, scene in concept.prompts]
    assert sum(other) / len(other) < 0.4


def test_a_gallery_is_written_and_is_the_same_each_time(tmp_path):
    for concept in CONCEPTS.values():
        for folder in ("one", "other"):
            concept.write(tmp_path / folder / concept.name)
        one, other = ({p.name: p.read_bytes() for p in (tmp_path / folder / concept.name).iterdir()} for folder in ("one", "other"))
        assert one == other and len([name for name in one if name.endswith(".png")]) == concept.pictures


def run(recipe, curve, held_out=None, drift=None):
    """`curve` has a concept and a prompt score for each 25 steps; so have the measurements."""
    watched = [{"step": 25 * (i + 1), "held_out": [loss], "drift": [moved]} for i, (loss, moved) in enumerate(zip(held_out, drift))] if held_out else None
    return {"recipe": recipe, "concept": "thing", "seed": 0, "steps": 25 * len(curve), "seconds_per_step": 0.1, "watched": watched,
            "curve": [{"step": 25 * (i + 1), "concept": concept, "prompt": prompt} for i, (concept, prompt) in enumerate(curve)]}


def test_half_of_the_plain_recipe_s_steps():
    plain = run("plain", [(20, 90), (40, 90), (60, 85), (80, 80)])
    won, late, worse = (run("balanced", curve) for curve in ([(50, 90), (80, 90)], [(50, 90), (60, 90), (80, 90)], [(50, 90), (80, 79)]))
    assert [races([plain, ours])[0]["reached"] for ours in (won, late, worse)] == [True, False, False]
    assert races([plain, run("balanced", [(50, 90)])])[0]["our_step"] is None and races([won]) == []
    assert score_rows([plain])[0][:4] == ["thing", "plain", "1", "40 / 90"]


def test_where_the_rules_stop():
    losses = [0.9, 0.5, 0.4, 0.3, *(0.33 + 0.03 * i for i in range(16))]  # from step 300 on less than two thirds of the gain are left
    drifts = [0.1, 0.2, 0.3, 0.4, 0.5, *[0.5] * 15]
    row = stops([run("balanced x5", [(50 + i if i < 4 else 53 - i, 90) for i in range(20)], losses, drifts)])[0]
    assert (row["best"], row["best_step"]) == (143, 100)
    every, _, drift = (row["rules"][name] for name in RULES)
    assert (every["kept"], every["stopped"], every["behind"]) == (275, 425, 143 - (53 - 10 + 90))
    assert drift["kept"] == drift["stopped"] == 375 and drift["behind"] == 143 - (53 - 14 + 90)
    assert row["rules"]["the last step"]["behind"] == 143 - (53 - 19 + 90)


def test_a_table_is_markdown():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
