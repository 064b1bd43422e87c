'''Your own Python in a run, named in the settings file as `package.module:function` or `path/to/file.py:function`.

    augmentation: my_training.py:turn_a_little
    loss_term: my_training.py:keep_colours

with a file `my_training.py` such as this:

    from PIL import Image

    def turn_a_little(picture, rng):
        """`picture` is a PIL picture in RGB, `rng` a random.Random; gives a picture of any size back."""
        return picture.rotate(rng.uniform(-5, 5), resample=Image.BICUBIC, expand=False)

    def keep_colours(out_BCHW, target_BCHW, t_B, batch):
        """Gives a tensor with one number back, which is added to the loss of the batch."""
        return 0.1 * (out_BCHW - target_BCHW).mean(dim=(2, 3)).square().mean()

The augmentation runs before a picture is cut to size and encoded, once for each cut in the cache, and draws its random numbers
from `rng` alone, so that a run can be repeated. It knows nothing of a picture's mask, so `masks` is turned down beside it. The loss term
gets the raw output of the model and what it should have been (noise, v or flow), the timesteps, and `batch`, a dict with what the
session has of the samples. An optimizer of your own is named as `optimizer: package.Class`.
'''
from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

from .paths import path_of
from .settings import nearest

ARGUMENTS = {"augmentation": ("picture", "rng"), "loss_term": ("out_BCHW", "target_BCHW", "t_B", "batch")}
"""What the function of each setting is called with, by position."""


def load_function(spec: str, setting_name: str) -> Callable[..., Any]:
    """The function that `spec` names, for the setting `setting_name`.

    A file is run anew at every call, so that a host that stays open sees the file as it is now.
    Raises ValueError when the text, the file, the import, the function or the number of its arguments is wrong.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"{setting_name} is {spec!r} but must name a function as package.module:function or "
                         "path/to/file.py:function; add what is missing")
    function = _attribute(load_module(place, setting_name), name, place, setting_name)
    if not callable(function):
        raise ValueError(f"{setting_name}: {name} in {place} is a {type(function).__name__}, not a function; name a function")
    _check_arguments(function, spec, setting_name)
    return function


def load_class(spec: str, setting_name: str) -> type:
    """The class that `package.module.Class` names; ValueError when there is none."""
    place, _, name = spec.rpartition(".")
    if not place:
        raise ValueError(f"{setting_name} is {spec!r} but must be of the form package.Class; add the package")
    found = _attribute(load_module(place, setting_name), name, place, setting_name)
    if not isinstance(found, type):
        raise ValueError(f"{setting_name}: {name} in {place} is a {type(found).__name__}, not a class; name a class")
    return found


def load_module(place: str, setting_name: str) -> ModuleType:
    """Import a module by its dotted name, or a file that ends in .py; ValueError with the reason when that fails."""
    path = path_of(place) if place.endswith(".py") else None
    if path is not None and not path.is_file():
        raise ValueError(f"{setting_name}: there is no file {path} (looked from {Path.cwd()}); mend the path")
    try:
        return importlib.import_module(place) if path is None else _run_file(path)
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        if path is None and f"{place}.".startswith(f"{missing}."):
            file = ", or name a file as path/to/file.py" if setting_name in ARGUMENTS else ""
            raise ValueError(f"{setting_name}: there is no module {missing} on this Python's path; install it{file}") from error
        raise ValueError(f"{setting_name}: {place} imports {missing}, which is not installed; install it") from error
    except Exception as error:  # the code of others can fail with anything, and the reason is theirs to mend
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{setting_name}: importing {place} failed with {reason}; mend that first") from error


class _NoBytecode(SourceFileLoader):
    """Loads a file without leaving a __pycache__ folder beside it."""

    def get_code(self, fullname: str):
        return self.source_to_code(self.get_data(self.path), self.path)


def _run_file(path: Path) -> ModuleType:
    """Run a file as a module of its own name, so that two files of one name do not meet."""
    name = "hotlora_custom_" + hashlib.blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()
    spec = spec_from_file_location(name, path, loader=_NoBytecode(name, str(path)))
    module = module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _attribute(module: ModuleType, name: str, place: str, setting_name: str) -> Any:
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise ValueError(f"{setting_name}: {place} has no {name}{nearest(name, public)}; mend the name")
    return getattr(module, name)


def _check_arguments(function: Callable[..., Any], spec: str, setting_name: str) -> None:
    """Notice before the run, and not after an hour of encoding, that a function cannot be called as it will be."""
    arguments = ARGUMENTS.get(setting_name)
    if arguments is None:
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{setting_name}: {spec} is called with ({', '.join(arguments)}), but it takes {signature}; change its "
                         "arguments") from error
