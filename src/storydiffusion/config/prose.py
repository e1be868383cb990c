"""Settings that hold prose: every character of their value is text, not Hydra's grammar."""

import re

from storydiffusion.errors import UserError

PROSE = ("idea",)


def quote_prose(argument: str) -> str:
    """Return `key=value` as Hydra reads it: prose in quotes, with what has a meaning in them escaped.

    A value that is null or already in quotes stays as it is. Raises UserError for `${`, a reference even in quotes.
    """
    key, sign, value = argument.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key.lstrip("+") not in PROSE or not sign or is_quoted or value in ("", "null"):
        return argument
    if "${" in value:
        raise UserError(f"{key} contains '${{', which refers to another setting: leave it out")
    line = " ".join(value.split())
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), line)
    return f"{key}='{escaped}'"
