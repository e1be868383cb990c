"""Names of characters: one spelling for those that look the same, and the nearest name for a misspelt one."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping

NAME = re.compile(r"\[([^\[\]]*)\]")
NO_CHARACTER = "NC"


def normalize_name(name: str) -> str:
    """Return the one spelling of a name: composed (NFC), without invisible characters, with single spaces."""
    visible = "".join(" " if char.isspace() else char for char in name if char.isspace() or not _invisible(char))
    return " ".join(unicodedata.normalize("NFC", visible).split())


def _invisible(char: str) -> bool:
    """Return whether a character is a control or format character (zero-width, direction) or a variation selector."""
    return unicodedata.category(char) in ("Cc", "Cf") or "\ufe00" <= char <= "\ufe0f"


def find_names(prompt: str) -> list[str]:
    """Return the distinct names in `[ ]`, in order, normalized."""
    return list(dict.fromkeys(normalize_name(name) for name in NAME.findall(prompt)))


def replace_names(prompt: str, texts: Mapping[str, str]) -> str:
    """Replace each `[Name]` by its text, with a space between it and an adjacent word, as in `[Name]runs`."""

    def replace(found: re.Match[str]) -> str:
        before, after = prompt[: found.start()][-1:], prompt[found.end() :][:1]
        text = texts[normalize_name(found[1])]
        left = " " if before in list("]),.;:!?") or _in_word(before) else ""
        right = " " if after in list("[(") or _in_word(after) else ""
        return f"{left}{text}{right}"

    return NAME.sub(replace, prompt)


def _in_word(char: str) -> bool:
    return bool(char) and (char.isalnum() or unicodedata.category(char).startswith("M"))


def find_twin(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that differs from `name` only in case; None without one."""
    return next((each for each in known if each != name and each.casefold() == name.casefold()), None)


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, whatever the case; None if none resembles it."""
    folded = {each.casefold(): each for each in reversed(list(known)) if each != name}
    nearest = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return folded[nearest[0]] if nearest else None


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return a question for an error, such as "did you mean [Mia]?", or '' if no known name resembles `name`.

    Letters of another alphabet that look the same are named.
    """
    nearest = find_nearest(name, known)
    if nearest is None:
        return ""
    foreign = [char for char in name if ord(char) > 127 and char not in nearest and char.isalpha()]
    letters = f" ('{foreign[0]}' is {unicodedata.name(foreign[0], 'another letter')})" if foreign else ""
    return f"did you mean [{nearest}]?{letters}"
