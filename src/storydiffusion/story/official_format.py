"""Parser of the official StoryDiffusion text syntax, into the same plain dictionary as a YAML story.

# A day in the park                     the title, on the first line; without one, the file's name is the title
[Mia] a girl with brown hair #hero      describes a character: a new name at the start of a line; `#…` is a remark
[Mia]is running in the park # Morning   a panel, one per line; the text after the last `#` is its caption
[NC] an empty beach at night            a panel with no character

Prompts equal those of the official demo (`character_to_dict` and `process_generation`), up to white space and the last
full stop. Beyond it, one file holds a title, descriptions and panels, blank lines are skipped, names are normalized,
and the caption of a panel without `#` has no brackets.
"""

from dataclasses import dataclass
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.story.names import NO_CHARACTER, find_names, find_twin, suggest_name


@dataclass(frozen=True)
class ParsedText:
    """The keys `characters`, `panels` and perhaps `title` of a story; the line of each name and panel's number."""

    data: dict[str, Any]
    lines: dict[str | int, int]


def parse_official(text: str, where: str) -> ParsedText:
    """Parse a story; `where` names the file in errors. Raises UserError."""
    characters: dict[str, str] = {}
    panels: list[dict[str, str]] = []
    lines: dict[str | int, int] = {}
    title: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line:
            continue
        if line.startswith("#") and not (title or characters or panels):
            title["title"] = _title(line, f"{where}: line {number}")
            continue
        name = None if panels else _described(line, characters)
        if name is None:
            panels.append(_panel(line, f"{where}: line {number}"))
            lines[len(panels)] = number
            continue
        if "#" in name:
            raise UserError(f"{where}: line {number}: the name '{name}' contains #, which begins a caption: remove it")
        if twin := find_twin(name, characters):
            raise UserError(f"{where}: line {number}: [{name}] and [{twin}] differ only in case: write one of them")
        characters[name] = _split(line.partition("]")[2])[0].strip()
        lines[name] = number
    if not panels:
        _refuse_misspelt_panels(characters, lines, where)
    return ParsedText({**title, "characters": characters, "panels": panels}, lines)


def _refuse_misspelt_panels(characters: dict[str, str], lines: dict[str | int, int], where: str) -> None:
    """Raise UserError if a line that seems to describe a new character may be a panel with a misspelt name."""
    for number, name in enumerate(characters):
        mend = suggest_name(name, list(characters)[:number])
        if mend:
            raise UserError(f"{where} has 0 panels, and line {lines[name]} describes a new character [{name}]: {mend}")


def _split(line: str) -> tuple[str, str | None]:
    """Split at the last `#`; the second part is None without one."""
    text, mark, rest = line.rpartition("#")
    return (text.strip(), rest.strip()) if mark else (line, None)


def _described(line: str, known: dict[str, str]) -> str | None:
    """Return the name that a line describes, None for a panel: a description starts with its only name, which is
    new."""
    bracket, _, after = line.partition("]")
    if not bracket.startswith("["):
        return None
    text = f"{bracket}]{_split(after)[0]}"
    names = find_names(text)
    if len(names) != 1 or text.count("[") != 1 or names[0] in known or names[0] == NO_CHARACTER:
        return None
    return names[0]


def _title(line: str, where: str) -> str:
    text = line.lstrip("#").strip()
    if not text:
        raise UserError(f"{where} has no title after the #: write one or remove the line")
    return text


def _panel(line: str, where: str) -> dict[str, str]:
    prompt, caption = _split(line)
    if not prompt:
        raise UserError(f"{where} has a caption but no prompt: write the prompt before the # in '{line}'")
    return {"prompt": prompt} if caption is None else {"prompt": prompt, "caption": caption}
