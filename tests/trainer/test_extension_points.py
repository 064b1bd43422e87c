"""A user's own functions: found, checked before the run, and with a clear sentence when something is wrong."""
from __future__ import annotations

import random
import sys
import textwrap

import pytest
import torch
from PIL import Image

from hotlora.trainer import extension_points
from hotlora.trainer.extension_points import load_class, load_function


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "my file.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write_file


def test_the_example_of_the_documentation_works(write, monkeypatch):
    """The text in the module's own docstring, run as a user would copy it."""
    documentation = extension_points.__doc__
    code = documentation[documentation.index("    from PIL"):documentation.index("The augmentation runs")]
    path = write(code, "my_training.py")
    monkeypatch.chdir(path.parent)
    settings = dict(line.strip().split(": ") for line in documentation.splitlines() if "my_training.py:" in line)
    assert set(settings) == {"augmentation", "loss_term"}

    turn = load_function(settings["augmentation"], "augmentation")
    picture = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    turned = turn(picture, random.Random(3))
    assert turned.size == (40, 30) and turned.tobytes() != picture.tobytes()
    assert turned.tobytes() == turn(picture, random.Random(3)).tobytes()

    term = load_function(settings["loss_term"], "loss_term")
    out = torch.full((2, 4, 8, 8), 3.0, requires_grad=True)
    value = term(out, torch.zeros(2, 4, 8, 8), torch.tensor([1, 2]), {})
    value.backward()
    assert float(value.detach()) == pytest.approx(0.9) and float(out.grad.abs().min()) > 0


def test_a_function_of_a_module():
    import shutil

    assert load_function("shutil:copyfile", "anything") is shutil.copyfile
    assert load_class("torch.optim.SGD", "optimizer") is torch.optim.SGD


def test_an_edited_file_is_read_again_and_nothing_is_left_beside_it(write):
    spec = f"{write('def f(): return 1')}:f"
    assert load_function(spec, "x")() == 1
    path = write("def f(): return 2")
    assert load_function(spec, "x")() == 2
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_may_have_dataclasses_a_byte_order_mark_and_any_name(write):
    path = write("""\
        \ufefffrom __future__ import annotations
        from dataclasses import dataclass
        @dataclass
        class Größe:
            n: int
        def make(): return Größe(5)
        """, "mein kürzel 1.py")
    assert load_function(f"{path}:make", "x")().n == 5


@pytest.mark.parametrize("spec, message", [
    ("json", "json.*must name a function as package.module:function"),
    (":f", "must name a function"),
    ("json:", "must name a function"),
    ("json:not a name", "must name a function"),
    ("nowhere/at_all.py:f", r"there is no file nowhere.at_all\.py \(looked from "),
    ("no_such_package_x.y:f", "there is no module no_such_package_x on this Python's path"),
    ("json.no_such_part:f", r"there is no module json\.no_such_part"),
    ("json:loadz", r"json has no loadz \(did you mean loads?\?\)"),
    ("json:decoder", "decoder in json is a module, not a function"),
    (".relative:f", "importing .relative failed with TypeError"),
])
def test_each_mistake_has_its_sentence(spec, message):
    with pytest.raises(ValueError, match="^loss_term.*" + message):
        load_function(spec, "loss_term")


@pytest.mark.parametrize("code, message", [
    ("def f(:", "failed with SyntaxError"),
    ("1 / 0", "failed with ZeroDivisionError: division by zero"),
    ("import no_such_package_y", "imports no_such_package_y, which is not installed"),
    ("import json.nothing_here", "imports json.nothing_here, which is not installed"),
    ("f = 5", "f in .* is a int, not a function"),
    ("def g(): pass", "has no f"),
    ("def f(picture): pass", r"called with \(picture, rng\), but it takes \(picture\); change its arguments"),
    ("def f(picture, rng, strength): pass", r"called with \(picture, rng\)"),
])
def test_each_mistake_in_a_file_has_its_sentence(write, code, message):
    before = set(sys.modules)
    with pytest.raises(ValueError, match="^augmentation: .*" + message) as caught:
        load_function(f"{write(code)}:f", "augmentation")
    assert "\n" not in str(caught.value)
    if "not a function" not in message and "has no" not in message and "called with" not in message:
        assert not {name for name in set(sys.modules) - before if name.startswith("hotlora_custom")}, "nothing is left"


def test_optional_arguments_and_classes_with_call_are_fine(write):
    path = write("""\
        class Turn:
            def __call__(self, picture, rng, angle=3): return picture
        f = Turn()
        def g(*anything): return anything[0]
        """)
    for name in ("f", "g"):
        assert load_function(f"{path}:{name}", "augmentation")("picture", None) == "picture"


def test_a_class_that_is_none():
    with pytest.raises(ValueError, match="optimizer: dumps in json is a function, not a class"):
        load_class("json.dumps", "optimizer")
    with pytest.raises(ValueError, match=r"optimizer: torch\.optim has no AdamV \(did you mean Adam"):
        load_class("torch.optim.AdamV", "optimizer")
    with pytest.raises(ValueError, match="form package.Class"):
        load_class("Adam", "optimizer")
