"""The embedded base follows prompts, by a measure that looks at its pictures alone."""
from pathlib import Path

import pytest

from hotlora.trainer.demo.judge import prompt_accuracy
from hotlora.trainer.demo.run_demo import draw, held_out_scenes
from hotlora.trainer.demo.scenes import is_held_out
from hotlora.trainer.hosts.standalone import DEMO_DIR


@pytest.mark.slow
def test_the_base_is_right_for_200_held_out_prompts(backend):
    scenes = held_out_scenes(200)
    assert len({scene.caption for scene in scenes}) == 200 and all(is_held_out(scene) for scene in scenes)
    colour, shape = prompt_accuracy(draw(backend, [s.caption for s in scenes], first_seed=5000), [(s.colour, s.shape) for s in scenes])
    assert colour >= 0.85 and shape >= 0.75


def test_the_base_fits_into_twelve_megabytes():
    files = list(Path(DEMO_DIR).rglob("*.safetensors"))
    assert len(files) == 3 and sum(file.stat().st_size for file in files) <= 12e6
