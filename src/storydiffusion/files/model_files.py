"""Model folders whose JSON files a library reads: checked first, and whatever it raises becomes one sentence."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.json_file import read_object

LARGEST_INTEGER = 10**7  # of a configuration, far above any width or vocabulary
MOST_LAYERS = 1000  # a network is built layer by layer before its weights are compared
NUMBERS = (bool, int, float)
"""Files in circulation write true for 1.0 and 1 for 1.0."""


def read_config(file: Path, network: Any = None) -> dict[str, Any]:
    """Read the configuration of a network or scheduler and check its numbers.

    Args:
        network: the class whose arguments the file holds; their types are compared with its annotations.

    Raises:
        UserError: a file that is missing or no JSON object, a number that is out of range, or a value of another type.
    """
    try:
        settings = read_object(file)
        _check_numbers(settings)
        if network is not None:
            _check_types(settings, network)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file} ({first_line(error)}): fetch it again") from error
    return settings


@contextmanager
def report_damage(folder: Path, files: str = "files") -> Iterator[None]:
    """Check the JSON files of a folder, then turn what a library raises while it reads them into a UserError.

    Numbers are left to the library: schedulers write -Infinity, tokenizers integers of 30 digits.
    """
    for file in sorted(folder.glob("*.json")):
        try:
            read_object(file, any_number=True)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file} ({first_line(error)}): fetch it again") from error
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # parsers and constructors of libraries raise exceptions of any class
        raise UserError(f"cannot load the {files} in {folder} ({first_line(error)}): fetch them again") from error


def _check_numbers(value: Any, name: str = "") -> None:
    """Raise ValueError for an integer that no network has; building it would take all time or memory."""
    if isinstance(value, dict):
        for key, child in value.items():
            _check_numbers(child, key)
    elif isinstance(value, list):
        for child in value:
            _check_numbers(child, name)
    elif isinstance(value, int | float):
        most = MOST_LAYERS if "layers" in name else LARGEST_INTEGER
        if abs(value) > most:
            raise ValueError(f"{name} is {value}, beyond {most:,}")


def _check_types(settings: Mapping[str, Any], network: Any) -> None:
    """Raise ValueError for a setting of another type than the annotation of the argument that it becomes."""
    hints = get_type_hints(network.__init__)
    for name, parameter in inspect.signature(network.__init__).parameters.items():
        value = settings.get(name, parameter.default)
        if value is not parameter.default and name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{name} is {str(value)[:40]!r}, of another type than {network.__name__} takes")


def _fits(value: Any, hint: Any) -> bool:
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in args)
    if kind is Literal:
        return value in args
    if kind in (list, tuple):
        known = [one for one in args if one is not Ellipsis]
        return isinstance(value, list) and (not known or all(any(_fits(v, one) for one in known) for v in value))
    if kind in NUMBERS:
        return isinstance(value, NUMBERS)
    if kind in (str, dict, NoneType):
        return isinstance(value, kind)
    return True
