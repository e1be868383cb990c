"""Strict loading: a composed configuration becomes dataclasses, or one sentence says why not."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from storydiffusion.config.renamed import explain_renamed
from storydiffusion.errors import UserError

Schema = TypeVar("Schema")

LARGEST_SEED = 2**32 - 1
LARGEST_SIDE = 4096  # pixels


def load(schema: type[Schema], composed: DictConfig, prefix: str = "") -> Schema:
    """Return the composed configuration as an instance of `schema`: every key known, every value of its type.

    Args:
        prefix: written before the keys in messages.

    Raises:
        UserError: in one sentence, for an unknown key (`+key=…` included), a missing one, a wrong type or value.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True)
        loaded = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except ConfigKeyError as error:
        key, known = f"{prefix}{error.full_key}", [prefix + key for key in keys(schema)]
        closest = f"there is no key '{key}'; did you mean '{prefix}{closest_key(error.full_key, schema)}'?"
        raise UserError(explain_renamed(key, known) or closest) from error
    except MissingMandatoryValue as error:
        raise UserError(f"{prefix}{error.full_key} has no value: write {prefix}{error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{prefix}{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(loaded, schema)
    return loaded


def keys(schema: type, prefix: str = "") -> list[str]:
    """Return every key of `schema` and of the dataclasses in it, dotted; for a field of several, the keys of all."""
    names = []
    for name, hint in get_type_hints(schema, include_extras=True).items():
        names.append(prefix + name)
        for part in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                names += keys(part, f"{prefix}{name}.")
    return names


def dictionary_keys(schema: type) -> list[str]:
    """Return the keys of `schema` that are plain dictionaries."""
    return [name for name, hint in get_type_hints(schema).items() if get_origin(hint) is dict]


def closest_key(wrong: str | None, schema: type) -> str:
    """Return the key of `schema` closest to a wrong one, compared whole and by its last part."""

    def likeness(key: str) -> float:
        last, wrong_last = key.rpartition(".")[2], str(wrong).rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, str(wrong), key).ratio()
        return whole + difflib.SequenceMatcher(None, wrong_last, last).ratio()

    return max(keys(schema), key=likeness)


def flat(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys; tuples become lists, as in files."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        renamed = explain_renamed(key, [key], value)
        raise UserError(renamed or f"{key}={value} is not one of {', '.join(choices)}")


def check_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN fails too
        raise UserError(f"{key}={value} is outside {low}…{high}")


def check_side(key: str, pixels: int) -> None:
    check_range(key, pixels, 64, LARGEST_SIDE)
    if pixels % 8:
        raise UserError(f"{key}={pixels} is not divisible by 8: take {pixels // 8 * 8} or {-(-pixels // 8) * 8}")


def check_sampling(prefix: str, config: Any) -> None:
    """Check steps, guidance_scale, height and width where they are set."""
    if config.steps is not None:
        check_range(f"{prefix}steps", config.steps, 1, 1000)
    if config.guidance_scale is not None:
        check_range(f"{prefix}guidance_scale", config.guidance_scale, 0, 100)
    for side in ("height", "width"):
        if getattr(config, side) is not None:
            check_side(f"{prefix}{side}", getattr(config, side))
