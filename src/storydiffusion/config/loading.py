"""Strict loading: a composed configuration becomes dataclasses, or one sentence says why not."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from storydiffusion.config.renamed import explain_renamed
from storydiffusion.config.value_types import explain_type, find_hint, find_nested, select, show
from storydiffusion.errors import UserError

Schema = TypeVar("Schema")

LARGEST_SEED = 2**32 - 1
LARGEST_SIDE = 4096  # pixels
SWITCH: dict[str, str] = {"true": "on", "yes": "on", "false": "off", "no": "off"}


def load(schema: type[Schema], composed: DictConfig, prefix: str = "") -> Schema:
    """Return the composed configuration as an instance of `schema`: every key known, every value of its type.

    Args:
        prefix: written before the keys in messages.

    Raises:
        UserError: in one sentence, for an unknown key (`+key=…` included), a missing one, a wrong type or value.
    """
    try:
        plain = _escape(OmegaConf.to_container(composed, resolve=True))
        if nested := find_nested(schema, plain, prefix):  # OmegaConf takes any list for a list of texts
            raise UserError(explain_type(*nested))
        loaded = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, schema, composed, prefix)) from error
    assert isinstance(loaded, schema)
    return loaded


def load_plain(schema: type[Schema], plain: Mapping[str, Any]) -> Schema:
    """Return plain data, such as a manifest's configuration, as `load` does, with `${` as text. Raises UserError."""
    escaped: dict[str, Any] = _escape(dict(plain))
    return load(schema, OmegaConf.create(escaped))


def load_choice(schemas: Mapping[str, type], composed: Any, key: str, by: str) -> Any:
    """Return the settings below `key` as the dataclass that their key `by` names. Raises UserError."""
    if not isinstance(composed, Mapping):
        raise UserError(f"{key}={show(composed)} is not a group of settings: choose one with {key}=NAME")
    name = show(composed.get(by))
    check_choice(f"{key}.{by}", name, tuple(schemas))
    return load(schemas[name], OmegaConf.create(dict(composed)), f"{key}.")


def explain_reference(setting: str) -> str:
    """Return one sentence on a setting whose `${…}` names nothing."""
    return f"{setting} refers by ${{…}} to nothing that exists: correct the name, or write \\${{ for this text itself"


def _explain(error: OmegaConfBaseException, schema: type, composed: DictConfig, prefix: str) -> str:
    """Say in the user's words what OmegaConf found wrong."""
    key = str(error.full_key or "")
    name = f"{prefix}{key}"
    if isinstance(error, ConfigKeyError):
        closest = f"there is no key '{name}'; did you mean '{prefix}{closest_key(key, schema)}'?"
        return explain_renamed(name, [prefix + known for known in keys(schema)]) or closest
    if isinstance(error, MissingMandatoryValue):
        return f"{name} has no value: write {name}=VALUE"
    if isinstance(error, InterpolationResolutionError | GrammarParseError):
        return explain_reference(f"{name}={show(select(OmegaConf.to_container(composed), key))}")
    plain = OmegaConf.to_container(composed, resolve=True)
    found, hint = find_hint(schema, key or _find_wrong_field(schema, plain))
    return explain_type(f"{prefix}{found}", select(plain, found), hint)


def _find_wrong_field(schema: type, plain: Any) -> str:
    """Return the field of `schema` that does not take its value, where OmegaConf does not name it."""
    for name in (each.name for each in dataclasses.fields(schema)):
        try:
            OmegaConf.merge(OmegaConf.structured(schema), {name: _escape(plain.get(name))})
        except OmegaConfBaseException:
            return name
    raise AssertionError("every field takes its value")


def _escape(value: Any) -> Any:
    """Return resolved values such that OmegaConf reads `${` in them as text."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


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

    known = keys(schema)
    groups = {key.rpartition(".")[0] for key in known}
    return max((key for key in known if key not in groups or not str(wrong).startswith(f"{key}.")), key=likeness)


def flat(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys; tuples become lists, as in files."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def spell_switch(value: str) -> str:
    """Return `on` or `off` for YAML's other spellings, of which Hydra makes True and False; other values unchanged."""
    return SWITCH.get(value.lower(), value)


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
