"""Values of the wrong type, in plain words and with the form that works on the command line."""

import dataclasses
import re
import shlex
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
PLACEHOLDERS = {int: "N", float: "X", bool: "true|false", str: "TEXT"}
LONGEST = 80  # characters of a value in a message


def explain_type(key: str, value: Any, hint: Any) -> str:
    """Return one sentence on a value that is not of the type `hint`, with the form that works where it is known.

    >>> explain_type("frames", "a.png", list[str] | None)
    "frames=a.png is not a list of texts or null: write frames='[a.png]'"
    """
    kind, is_optional = _strip_optional(hint)
    wanted = _describe(kind) + (" or null" if is_optional else "")
    return f"{key}={show(value)} is not {wanted}: {_advise(key, value, kind)}"


def find_hint(schema: type, key: str) -> tuple[str, Any]:
    """Return the first part of a dotted key whose type is not a dataclass, or all of it, and that type."""
    name, _, rest = key.partition(".")
    name = name.partition("[")[0]
    hint = get_type_hints(schema).get(name, Any)
    kind, _ = _strip_optional(hint)
    if rest and dataclasses.is_dataclass(kind) and isinstance(kind, type):
        inner, found = find_hint(kind, rest)
        return f"{name}.{inner}", found
    return name, hint


def find_nested(schema: type, values: Any, prefix: str = "") -> tuple[str, Any, Any] | None:
    """Return the key, value and type of a list or dictionary of texts or numbers that holds lists or dictionaries."""
    if not isinstance(values, Mapping):
        return None
    for name, hint in get_type_hints(schema).items():
        kind, value = _strip_optional(hint)[0], values.get(name)
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        is_plain = get_origin(kind) in (list, tuple, dict)
        if is_plain and any(isinstance(item, Mapping | list) for item in items):
            return f"{prefix}{name}", value, hint
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found = find_nested(kind, value, f"{prefix}{name}.")
            if found is not None:
                return found
    return None


def select(values: Any, key: str) -> Any:
    """Return the value at a dotted key of nested dictionaries; None where there is none."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def show(value: Any) -> str:
    """Return a value as the command line writes it, on one line and shortened."""
    text = " ".join(_write(value, quoted=False).split()) or "''"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def write_setting(key: str, value: Any) -> str:
    """Return `key=value` as a shell passes it and Hydra reads it: quoted where needed."""
    return in_shell(key, _write(value))


def in_shell(key: str, written: str) -> str:
    """Return `key=WRITTEN` for a shell, with as few quotes as it needs.

    >>> in_shell("frames", "[a.png]"), in_shell("story", "'a b.txt'")
    ("frames='[a.png]'", '"story=\'a b.txt\'"')
    """
    if "'" not in written:
        return f"{key}={shlex.quote(written)}"
    if set(written) & set("!$`"):  # special inside a shell's double quotes
        return shlex.quote(f"{key}={written}")
    return '"' + re.sub(r'(["\\])', r"\\\1", f"{key}={written}") + '"'


def _advise(key: str, value: Any, kind: Any) -> str:
    """Return what to write instead: the value itself in the right form, or a form with a placeholder."""
    if (get_origin(kind) or kind) in (list, tuple):
        if get_args(kind)[0] is not str:
            return f"write {key}='[1,2]' with your numbers"
        return f"write {write_setting(key, [value])}" if value and isinstance(value, str) else f"write {key}='[A,B]'"
    if get_origin(kind) is dict or dataclasses.is_dataclass(kind):
        return f"set each of its keys, as {key}.KEY=VALUE"
    if kind is str and isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return f"write {write_setting(key, value[0])}"
    return f"write {key}={PLACEHOLDERS.get(kind, 'VALUE')}"


def _describe(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin in (list, tuple):
        return "a list of texts" if get_args(kind)[0] is str else "a list of numbers"
    if origin is dict or dataclasses.is_dataclass(kind):
        return "a group of settings"
    return NAMES.get(kind, "a value")


def _strip_optional(hint: Any) -> tuple[Any, bool]:
    """Return the type without None and without annotations, and whether None is one of its values."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    parts = [part for part in get_args(hint) if part is not type(None)]
    return parts[0], len(parts) < len(get_args(hint))


def quote(text: str) -> str:
    """Return text as Hydra's grammar writes it: in single quotes where it would otherwise be read as something else."""
    try:
        is_plain = OverridesParser.create().parse_override(f"key={text}").value() == text
    except HydraException:
        is_plain = False
    return text if is_plain and text and "\\" not in text else QuotedString(text, Quote.single).with_quotes()


def _write(value: Any, quoted: bool = True) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_write(key, quoted)}: {_write(item, quoted)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_write(item, quoted) for item in value) + "]"
    if isinstance(value, str):
        return quote(value) if quoted else value
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
