"""JSON that anyone may have written: limits on size and depth, finite 64-bit numbers, exact types.

Functions raise ValueError with the reason; their callers add the file and the remedy.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from storydiffusion.files.bounded_text import read_text

LARGEST = 64 * 2**20  # bytes, some 300,000 shards of an index
DEEPEST = 64  # levels, far below Python's recursion limit
SHOWN = 40  # characters of a key in an error

T = TypeVar("T")


def read_object(file: str | Path, largest: int = LARGEST, any_number: bool = False) -> dict[str, Any]:
    """Read the JSON object in a file; `any_number` also admits NaN, infinity and integers of any size.

    Raises:
        OSError: the file cannot be read.
        ValueError: the content is not a JSON object, or exceeds a limit.
    """
    return parse_object(read_text(file, largest), any_number)


def json_bytes(content: Any) -> bytes:
    """Return JSON to write into a file. Raises ValueError for numbers that are not finite."""
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def parse_object(text: str, any_number: bool = False) -> dict[str, Any]:
    """Parse a JSON object, see `read_object`. Raises ValueError for other content, or content that exceeds a limit."""
    too_deep = f"it is nested more than {DEEPEST} levels deep"
    try:
        content = json.loads(text, object_pairs_hook=_build_dict)
    except RecursionError:
        raise ValueError(too_deep) from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        level = [child for value in level for child in _check_children(value, any_number)]
        if not level:
            return content
    raise ValueError(too_deep)


def _build_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)[:SHOWN]!r} occurs twice")
    return content


def _check_children(parent: dict[str, Any] | list[Any], any_number: bool) -> Iterator[Any]:
    """Check the scalars in an object or a list, and yield the objects and lists in it."""
    if isinstance(parent, dict):
        for key in parent:
            _check_scalar(key, any_number)
    for child in parent.values() if isinstance(parent, dict) else parent:
        if isinstance(child, dict | list):
            yield child
        else:
            _check_scalar(child, any_number)


def _check_scalar(value: str | int | float | None, any_number: bool) -> None:
    if isinstance(value, str):
        value.encode()  # raises UnicodeEncodeError, a ValueError, for half of a surrogate pair
    elif any_number:
        return
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it holds the number {value}, which is not finite")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("it holds an integer of more than 64 bits")


def build(schema: type[T], data: Any, where: str = "") -> T:
    """Build a dataclass from plain data whose keys and types fit exactly; lists become tuples where it wants tuples.

    An integer fits a float, and a field with a default may be missing. `where` is the place of `data` in the file.

    Raises:
        ValueError: a key that is missing or unknown, or a value of another type; the message names its place.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'the content'} is not an object")
    hints, known = get_type_hints(schema), {each.name: each for each in fields(schema)}  # type: ignore[arg-type]
    at = f"{where}." if where else ""
    if unknown := sorted(str(key) for key in data.keys() - known.keys()):
        raise ValueError(f"the key {at}{unknown[0][:SHOWN]!r} is unknown")
    for name, each in known.items():
        if name not in data and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{at}{name} is missing")
    return schema(**{name: _convert(hints[name], value, f"{at}{name}") for name, value in data.items()})


def _show(key: str) -> str:
    """Return a key from a file as part of a one-line message."""
    shown = key[:SHOWN]
    return shown if shown.isprintable() else repr(shown)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the type `hint`. Raises ValueError where it is of another type."""
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return value
    if kind in (Union, UnionType):
        rest = [one for one in args if one is not type(None)]
        if value is None and len(rest) < len(args):
            return None
        if len(rest) == 1:
            return _convert(rest[0], value, where)
        raise TypeError(f"{where}: a union of several types is not supported")
    if kind is Literal:
        if value not in args:
            raise ValueError(f"{where} is none of {', '.join(map(str, args))}")
        return value
    if is_dataclass(kind):
        return build(kind, value, where)  # type: ignore[arg-type]
    if kind in (list, tuple) and isinstance(value, list):
        return kind(_convert(args[0], one, f"{where}[{n}]") for n, one in enumerate(value))
    if kind is dict and isinstance(value, dict):
        return {key: _convert(args[1], one, f"{where}.{_show(key)}") for key, one in value.items()}
    if kind in (str, bool, int) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float):
        return value
    raise ValueError(f"{where} is not of type {kind.__name__}")
