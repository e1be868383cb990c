"""Parser of the official StoryDiffusion text syntax, into the same plain dictionary as a YAML story.

[Mia] a girl with brown hair            describes a character: a new name at the start of a line
[Mia] is running in the park # Morning  a panel, one per line; the text after `#` is its caption
[NC] an empty beach at night            a panel with no character
"""

import re
from typing import Any

from storydiffusion.errors import UserError

NAME = re.compile(r"\[([^\[\]]*)\]")
NO_CHARACTER = "NC"


def parse_official(text: str, where: str) -> dict[str, Any]:
    """Return the keys `characters` and `panels` of a story; `where` names the file in errors. Raises UserError."""
    characters: dict[str, str] = {}
    panels: list[dict[str, str]] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line:
            continue
        name = None if panels else _described(line, characters)
        if name is None:
            panels.append(_panel(line, f"{where}: line {number}"))
        else:
            characters[name] = line[line.index("]") + 1 :].strip()
    return {"characters": characters, "panels": panels}


def _described(line: str, known: dict[str, str]) -> str | None:
    """Return the name that a line describes, None for a panel: a description starts with its only name, which is new,
    and has no caption."""
    names = [name.strip() for name in NAME.findall(line)]
    if not line.startswith("[") or len(names) != 1 or "#" in line or names[0] in known or names[0] == NO_CHARACTER:
        return None
    return names[0]


def _panel(line: str, where: str) -> dict[str, str]:
    prompt, mark, caption = line.partition("#")
    if not prompt.strip():
        raise UserError(f"{where} has a caption but no prompt: write the prompt before the # in '{line}'")
    panel = {"prompt": prompt.strip()}
    if mark:
        panel["caption"] = caption.strip()
    return panel
