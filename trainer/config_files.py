"""Settings files: YAML, TOML or JSON, with our keys or those of kohya sd-scripts, and `key=value` from the command line.

YAML is read by the rules of YAML 1.2, which are what people expect: `no` and `on` are texts (and true or false where a
setting wants that), 1e-4 is a number, 007 and 2024-01-01 are texts.
"""
from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any, Iterable

import yaml

from .config import TrainConfig, without_effect
from .kohya_keys import translate
from .llm.base_folder import is_language_base
from .paths import path_of
from .settings import CheckedSettings, nearest, shown

SUFFIXES = (".yaml", ".yml", ".toml", ".json")
MAX_BYTES = 1_000_000
ONLY_HERE = "and language models are trained by `python train.py --config`; here pictures are trained"
WINDOWS_PATHS = "write Windows paths with / or in single quotes"


def load_config(path: str | Path, overrides: Iterable[str | tuple[str, Any]] = (), text: str | None = None) -> tuple[TrainConfig, list[str]]:
    """The checked settings of a file, and one sentence for each thing that the user should know.

    `overrides` are "key=value" texts, or such pairs, that go before the file, the last of one key before the others. `text` is used
    instead of what the file holds. Relative paths in the settings stay as they are, relative to the current directory. ValueError says
    what is wrong with the file, beginning with its name, or with an override.
    """
    values, given = read_values(path, text), dict(parse_override(override) for override in overrides)
    try:
        for tasks in (values, given):
            check_task(tasks.pop("task", None))
        settings, warnings = translate(values)
        check_base(settings.get("base_model"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    changed, more = translate(given, whole_file=False)
    try:
        config = TrainConfig.from_dict(from_home(TrainConfig, overridden(settings, changed)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config, warnings + more + without_effect(config)


def overridden(settings: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """`settings` of a file with what was changed for one run; a length in steps there takes the place of one in epochs, and the other way."""
    replaced = {other for length, other in (("steps", "epochs"), ("epochs", "steps")) if changed.get(length) is not None and changed.get(other) is None}
    return {**{name: value for name, value in settings.items() if name not in replaced}, **changed}


def from_home(kind: type[CheckedSettings], settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the paths that begin with ~ as those of a home folder: a shell does that to what is typed, and not to what is in a file."""
    paths = {name for name, definition in kind.definitions().items() if definition.form.endswith(("path", "file"))}
    return {name: str(path_of(value)) if name in paths and isinstance(value, str) and value.startswith("~") else value
            for name, value in settings.items()}


def read_values(path: str | Path, text: str | None = None) -> dict[str, Any]:
    """What a settings file holds (or `text`, read as such a file), unchecked; ValueError begins with its name."""
    path = Path(path)
    parse = _parser(path)
    try:
        return parse(_read(path) if text is None else text)
    except (ValueError, RecursionError) as error:
        too_deep = "its brackets are nested too deeply; write one setting per line, such as lora_rank: 16"
        raise ValueError(f"{path}: {too_deep if isinstance(error, RecursionError) else error}") from None


def check_task(task: Any) -> None:
    """ValueError unless `task` is left out or says pictures."""
    if task is None or isinstance(task, str) and task.strip().lower() in ("", "image"):
        return
    if isinstance(task, str) and task.strip().lower() == "llm":
        raise ValueError(f"task is llm, {ONLY_HERE}")
    raise ValueError(f"task is {shown(task)} but must be one of image, llm; change it, or remove it to let the base model decide")


def check_base(base: Any) -> None:
    """ValueError for the folder of a language model."""
    if isinstance(base, str) and base and is_language_base(base):
        raise ValueError(f"base_model is {base}, a language model, {ONLY_HERE}")


def parse_override(override: str | tuple[str, Any]) -> tuple[str, Any]:
    """"key=value" as a pair; null, [a, b] and {a: 1} are read as YAML, anything else is taken as the text that it is. A pair stays what it is."""
    if isinstance(override, tuple):
        return override
    key, sign, text = (part.strip() for part in override.partition("="))
    if not sign or not key:
        raise ValueError(f"{shown(override)} is not of the form key=value; write for example --set lora_rank=8")
    if text in ("null", "~"):
        return key, None
    if text[:1] not in ("[", "{"):
        return key, text
    try:
        return key, _yaml(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{key} is set to {shown(text)}, which is no list [a, b] or mapping {{a: 1}}; put all of key=value in "
                         "quotes for the command line, and texts with , or : in quotes of their own") from None


def _parser(path: Path):
    """The function for the kind of file, by its suffix."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is not a settings file that can be read; its name must end in {', '.join(SUFFIXES)}")
    return {".toml": _parse_toml, ".json": _parse_json}.get(suffix, _parse_yaml)


def _read(path: Path) -> str:
    """The text of the file in UTF-8 (with or without byte order mark), UTF-16, or GB18030, which Chinese Windows writes."""
    if not path.is_file():
        others = [other.name for suffix in SUFFIXES for other in path.parent.glob(f"*{suffix}")]
        raise ValueError(f"there is no such file{nearest(path.name, others)}; give the path of your settings file, "
                         "configs/my_lora_config.yaml is an example to copy")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the file cannot be read ({error.strerror}); close other programs that use it or check its "
                         "permissions") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"the file is larger than {MAX_BYTES // 1_000_000} MB, which no settings file is; give another file")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", "gb18030"]
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError("the file is not text in UTF-8; open it in an editor and save it as UTF-8")


def _mapping(values: Any) -> dict[str, Any]:
    if values is None or values == "":
        raise ValueError("the file is empty; add at least train_data_dir: path/to/my/pictures")
    if not isinstance(values, dict):
        raise ValueError(f"the file holds {shown(values)} but must hold one setting per line, such as lora_rank: 16; "
                         "compare with configs/my_lora_config.yaml")
    return values


def _no_repeats(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    pairs = list(pairs)
    names = [name for name, _ in pairs]
    repeated = [name for position, name in enumerate(names) if name in names[:position]]
    if repeated:
        raise ValueError(f"{repeated[0]} is set twice; remove one of the two")
    return pairs


def _parse_json(text: str) -> dict[str, Any]:
    if not text.strip("\ufeff \t\r\n"):
        return _mapping(None)
    try:
        return _mapping(json.loads(text.lstrip("\ufeff"), object_pairs_hook=lambda pairs: dict(_no_repeats(pairs))))
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}, so this is not valid JSON; correct it, or use "
                         "a .yaml file, which is easier to write") from None


def _parse_toml(text: str) -> dict[str, Any]:
    """Settings in sections count as if the section lines were not there, as in sd-scripts."""
    try:
        import tomllib
    except ImportError:
        try:
            import tomli as tomllib
        except ImportError:
            raise ValueError("Python 3.10 reads .toml files only with the package tomli; install it with pip install tomli, or "
                             "write the settings as .yaml") from None
    try:
        values = tomllib.loads(text.lstrip("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{error}, so this is not valid TOML; correct the line"
                         + (f" ({WINDOWS_PATHS})" if "\\" in text else "")) from None
    pairs = []
    for name, value in values.items():
        is_section = isinstance(value, dict) and name not in ("optimizer_args", "network_args")
        pairs.extend(value.items() if is_section else [(name, value)])
    return _mapping(dict(_no_repeats(pairs)) or None)


def _parse_yaml(text: str) -> dict[str, Any]:
    return _mapping(_yaml(text.lstrip("\ufeff")))


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        advice = WINDOWS_PATHS if "escape" in problem else "use spaces instead of tabs" if "\\t" in problem else \
            "put texts with : # [ ] { } , & * in quotes"
        raise ValueError(f"{place}{problem}, so this is not valid YAML; correct the line ({advice})") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader without the surprises of YAML 1.1, and without tags and aliases, which a settings file does not need."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"line {event.start_mark.line + 1}: a value begins with & or *, which has a meaning of its own in "
                             "YAML; put the value in quotes")
        if getattr(event, "tag", None) not in (None, "!"):
            raise ValueError(f"line {event.start_mark.line + 1}: a value begins with !, which has a meaning of its own in YAML; "
                             "put the value in quotes")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: the name of a setting is a list or mapping but must be plain "
                                 "text; write it as name: value")
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value[:80]} is set twice; remove one of the two")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,30})$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(
    r"^(?:[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+.0123456789"))
