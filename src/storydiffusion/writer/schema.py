"""JSON schemas of what a writer hands over, and the check of a value against one.

A schema is plain data that servers accept as `response_format`: objects whose keys are all required, arrays of bounded
length, strings of bounded length or from a list.
"""

from typing import Any

from storydiffusion.errors import UserError

Schema = dict[str, Any]

SHOWN = 60  # characters of a value in an error


def text(longest: int) -> Schema:
    """Return the schema of a string of at least one and at most `longest` characters."""
    return {"type": "string", "minLength": 1, "maxLength": longest}


def choice(*values: str) -> Schema:
    """Return the schema of one of `values`."""
    return {"type": "string", "enum": list(values)}


def items(item: Schema, low: int, high: int) -> Schema:
    """Return the schema of `low` to `high` items."""
    return {"type": "array", "items": item, "minItems": low, "maxItems": high}


def record(**fields: Schema) -> Schema:
    """Return the schema of an object with exactly these keys."""
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


def check(value: Any, schema: Schema, where: str = "the reply") -> None:
    """Raise UserError unless `value` fits `schema`; the message names the place in it."""
    match schema["type"]:
        case "object":
            _check_object(value, schema, where)
        case "array":
            _check_array(value, schema, where)
        case "string":
            _check_string(value, schema, where)


def _check_object(value: Any, schema: Schema, where: str) -> None:
    keys = schema["properties"]
    if not isinstance(value, dict):
        raise UserError(f"{where} is {_brief(value)}: give an object with the keys {', '.join(keys)}")
    if missing := [key for key in keys if key not in value]:
        raise UserError(f"{where} has no {missing[0]!r}: add it")
    if unknown := [key for key in value if key not in keys]:
        raise UserError(f"{where} has the unknown key {_brief(unknown[0])}: use {', '.join(keys)}")
    for key, each in keys.items():
        check(value[key], each, f"{where}: {key}")


def _check_array(value: Any, schema: Schema, where: str) -> None:
    low, high = schema["minItems"], schema["maxItems"]
    if not isinstance(value, list):
        raise UserError(f"{where} is {_brief(value)}: give a list")
    if not low <= len(value) <= high:
        wanted = f"{low}" if low == high else f"{low} to {high}"
        raise UserError(f"{where} has {len(value)} items: give {wanted}")
    for number, item in enumerate(value, start=1):
        check(item, schema["items"], f"{where} {number}")


def _check_string(value: Any, schema: Schema, where: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} is {_brief(value)}: give text")
    if "enum" in schema and value not in schema["enum"]:
        raise UserError(f"{where} is {_brief(value)}: choose one of {', '.join(schema['enum'])}")
    if len(value) > schema.get("maxLength", len(value)):
        raise UserError(f"{where} has {len(value)} characters: give at most {schema['maxLength']}")


def _brief(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
