"""One setting: what is allowed, how a value is brought into its type, and the sentence for a value that is not allowed."""
from __future__ import annotations

import dataclasses
import difflib
import math
import re
import reprlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Iterable, TypeVar

import yaml

NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
YES_NO = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text",
         "list[str]": 'a list of texts such as ["a", "b"]', "dict": "a mapping such as {name: 1}"}


@dataclass(frozen=True)
class Setting:
    """What is allowed for one setting; `minimum` and `maximum` include the bound, `above` and `below` do not.

    A text must be one of `choices` or match the regular expression `pattern`, which the user knows as `form`. `words` (for a
    list) says that each entry is one word, so that a text with commas is a list too.
    """

    name: str
    kind: str
    optional: bool
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    multiple: int = 1
    choices: tuple[str, ...] = ()
    pattern: str = ""
    form: str = ""
    unit: str = ""
    words: bool = False

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is dataclasses.MISSING

    def allowed(self) -> str:
        """The allowed values in words, such as "a whole number from 1 to 1024"."""
        text = "one of " + ", ".join(self.choices) if self.choices else self.form or KINDS[self.kind]
        text += f", or {self.form}" if self.choices and self.form else ""
        low, high = (self.minimum if self.above is None else self.above), (self.maximum if self.below is None else self.below)
        if low is not None:
            text += f" {'from' if self.above is None else 'above'} {low}"
        if high is not None:
            text += f" {'to' if self.above is None else 'up to'} {high}" if self.below is None else f", below {high}"
        text += f" and a multiple of {self.multiple}" if self.multiple > 1 else ""
        text += f" ({self.unit})" if self.unit else ""
        return text + (", or null" if self.optional else "")

    def default_text(self) -> str:
        """The default as a settings file has it, or "required"."""
        if self.required:
            return "required"
        return self.default if self.default and isinstance(self.default, str) else shown(self.default)

    def tooltip(self) -> str:
        """What the setting does, what it may be and what it is when it is left out."""
        return f"{self.help} [{self.allowed()}; default {self.default_text()}]"

    def wrong(self, value: Any, called: str | None = None) -> ValueError:
        """The error for a value that is not allowed; `called` is the name that the user wrote when it is another one."""
        unquoted = self.kind == "str" and isinstance(value, (bool, float)) and not self.choices
        advice = "put it in quotes" if unquoted else "change it"
        similar = nearest(value, self.choices) if isinstance(value, str) else ""
        advice += "" if self.required else f", or remove it to get the default ({self.default_text()})"
        return ValueError(f"{called or self.name} is {shown(value)} but must be {self.allowed()}{similar}; {advice}")

    def convert(self, value: Any, called: str | None = None) -> Any:
        """`value` in the setting's own type, numbers also from texts such as "1e-4"; ValueError when it is not allowed."""
        if self.optional and (value is None or isinstance(value, str) and not value.strip()):
            return None
        try:
            converted = CONVERTERS[self.kind](value)
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise self.wrong(value, called) from None
        if self.words and isinstance(value, str):
            converted = [word.strip() for word in value.split(",") if word.strip()]
        if self.choices and converted.lower() in self.choices:
            return converted.lower()
        if (self.choices or self.pattern) and not (self.pattern and re.fullmatch(self.pattern, converted)):
            raise self.wrong(value, called)
        if self.kind in ("int", "float") and not self.in_range(converted):
            raise self.wrong(value, called)
        return converted

    def in_range(self, number: float) -> bool:
        """Whether the number is finite, inside the bounds and a multiple of what it should be."""
        return ((isinstance(number, int) or math.isfinite(number)) and (self.multiple == 1 or number % self.multiple == 0)
                and (self.minimum is None or number >= self.minimum) and (self.above is None or number > self.above)
                and (self.maximum is None or number <= self.maximum) and (self.below is None or number < self.below))


def setting(default: Any = dataclasses.MISSING, *, help: str, **limits: Any) -> Any:
    """A dataclass field that carries what `Setting` needs; `limits` are the remaining fields of `Setting`."""
    metadata = {"default": default, "help": help, **limits}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


T = TypeVar("T", bound="CheckedSettings")


class CheckedSettings:
    """Base of a dataclass whose fields were made by `setting`. Making one (also by `dataclasses.replace`) checks it."""

    EXAMPLES: ClassVar[dict[str, str]] = {}
    """A value for each setting that has no default, for the message when it is missing."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Convert every value to its type and check its range; ValueError names the first that is wrong."""
        for name, definition in self.definitions().items():
            setattr(self, name, definition.convert(getattr(self, name)))

    @classmethod
    @lru_cache(maxsize=None)
    def definitions(cls) -> dict[str, Setting]:
        """Every setting by name, in the order in which forms and tables show them."""
        return {field.name: _definition(field) for field in dataclasses.fields(cls)}

    @classmethod
    def from_dict(cls: type[T], values: dict[str, Any]) -> T:
        """A checked config from a mapping of setting names; ValueError for an unknown or missing name or a wrong value."""
        definitions = cls.definitions()
        for name in values:
            if name not in definitions:
                raise unknown_key(name, definitions)
        for name, definition in definitions.items():
            if definition.required and name not in values:
                raise ValueError(f"{name} is missing; add a line such as {name}: {cls.EXAMPLES[name]}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, in the order of their definition; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """All settings as a YAML file that `load_config` reads back to an equal config."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _definition(field: dataclasses.Field) -> Setting:
    kind, _, rest = field.type.partition(" | ")
    return Setting(name=field.name, kind=kind, optional=rest == "None", **field.metadata)


class _Dumper(yaml.SafeDumper):
    """Quotes also the texts that only `config_files.py` (or YAML 1.2) reads as numbers, such as 1e5."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Line ends of other alphabets are escaped: within single quotes they would be read back as a space."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if re.search("[\x85\u2028\u2029]", text) else None)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{NUMBER.pattern})$", re.ASCII), list("-+.0123456789"))


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in YES_NO:
        return YES_NO[value.strip().lower()]
    raise TypeError


def _to_number(value: Any) -> int | float:
    """An int stays an int; a text must read as a number as a whole."""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        return int(value) if value.strip().lstrip("+-").isdigit() else float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return value


def _to_int(value: Any) -> int:
    number = _to_number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _to_text(value: Any) -> str:
    """A text, or the digits of a whole number: `trigger: 2024` loses nothing, while 1.50 would."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or "\0" in value:
        raise TypeError
    value.encode("utf-8")  # a lone surrogate cannot be written to any file
    return value


def _to_texts(value: Any) -> list[str]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return [_to_text(item) for item in value]


def _to_mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise TypeError
    return {_to_text(name): _to_plain(item) for name, item in value.items()}


def _to_plain(value: Any) -> Any:
    """Numbers, texts, true/false, null, and lists and mappings of them: what JSON and YAML can hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise ValueError
        return value
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    return _to_mapping(value) if isinstance(value, dict) else _to_text(value)


CONVERTERS = {"bool": _to_bool, "int": _to_int, "float": lambda value: float(_to_number(value)), "str": _to_text,
              "list[str]": _to_texts, "dict": _to_mapping}


def shown(value: Any) -> str:
    """A value as a message shows it: as in a settings file, cut when it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean x?)" for the most similar known name, "" when none is similar."""
    similar = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean {similar[0]}?)" if similar else ""


def unknown_key(name: Any, *known: Iterable[str]) -> ValueError:
    """The error for a setting that does not exist; a similar name is looked for in the first of `known`, then in the next."""
    text = str(name) if not isinstance(name, int) else shown(name)
    similar = next(filter(None, (nearest(text, names) for names in known)), "")
    return ValueError(f"{text[:80]} is not a setting{similar}; correct the name or remove it, "
                      "train.py train --help lists all settings")
