"""Story scripts: characters, panels and a style, read strictly from YAML or the official text syntax."""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.files.bounded_yaml import parse_yaml, read_text
from storydiffusion.story.character_file import read_character
from storydiffusion.story.names import (
    NAME,
    NO_CHARACTER,
    find_names,
    find_twin,
    normalize_name,
    replace_names,
    suggest_name,
)
from storydiffusion.story.official_format import parse_official
from storydiffusion.story.styles import NO_STYLE, Style, find_style

PACKAGE_SCHEME = "package://"
LARGEST_SEED = 2**32 - 1
LONGEST_SPEECH = 160  # characters in a balloon


@dataclass(frozen=True)
class Character:
    """A recurring character; `description` replaces the name in every prompt.

    `file` is a character file, whose images the character's panels read; None for a new character.
    """

    name: str
    description: str
    file: str | None = None


@dataclass(frozen=True)
class Panel:
    """One image: `prompt` with `[Name]` for characters, and the `caption` below it ('' for none).

    `characters` are the distinct names in the prompt, in order; empty for a panel marked `[NC]`. With `cut` the video
    cuts to this panel instead of generating a transition; None leaves it to `cut_between_characters`. `says` is the
    text of a speech balloon. `negative` lists what to avoid in this panel, beside the story's. A panel with `lock`
    keeps its image: what would replace it is refused. `seed` is that of the panel's starting noise; None derives it
    from the story's. `pose` is the file of a ControlNet's pose map. `place` names where the panel is, '' where it does
    not say so; see `panel_places`.
    """

    prompt: str
    caption: str
    characters: tuple[str, ...]
    cut: bool | None = None
    negative: str = ""
    seed: int | None = None
    pose: str | None = None
    place: str = ""
    says: str = ""
    lock: bool = False


@dataclass(frozen=True)
class Story:
    """A complete script. Panels name only `characters`, and every character appears in a panel.

    `negative` lists what to avoid in all panels, beside the style's.
    """

    title: str
    characters: tuple[Character, ...]
    panels: tuple[Panel, ...]
    style: str = NO_STYLE.name
    negative: str = ""


@dataclass(frozen=True)
class PanelPrompt:
    """The image model's prompts for one panel."""

    prompt: str
    negative_prompt: str


def panel_prompts(story: Story) -> list[PanelPrompt]:
    """Build one prompt per panel: replace each `[Name]` by the character's description, then apply the story's style.

    '[Mia] is running' with Mia 'a girl with brown hair' becomes 'a girl with brown hair is running'. The negative
    prompt is the style's, the story's and the panel's, joined by commas.
    """
    style = find_style(story.style)
    descriptions = {character.name: character.description for character in story.characters} | {NO_CHARACTER: ""}
    prompts = []
    for panel in story.panels:
        prompt = _sentence(replace_names(panel.prompt, descriptions))
        prompts.append(PanelPrompt(style.apply(prompt), _join_negatives(style, story, panel.negative)))
    return prompts


def character_prompts(story: Story) -> list[PanelPrompt]:
    """Build one portrait prompt per character: its description in the story's style."""
    style = find_style(story.style)
    negative = _join_negatives(style, story)
    return [PanelPrompt(style.apply(each.description), negative) for each in story.characters]


def character_words(story: Story) -> dict[str, str]:
    """Return the words by which prompts describe each character: its description, spelled as in them."""
    return {each.name: _sentence(each.description) for each in story.characters}


def panel_places(story: Story) -> list[str]:
    """Return the place of each panel: its own, or one of the story's places whose words its prompt has, or ''."""
    known = sorted({panel.place for panel in story.panels if panel.place}, key=len, reverse=True)
    return [
        panel.place or next((place for place in known if re.search(rf"\b{re.escape(place)}\b", panel.prompt, re.I)), "")
        for panel in story.panels
    ]


def _join_negatives(style: Style, story: Story, of_panel: str = "") -> str:
    return ", ".join(part for part in (style.negative_prompt, story.negative, of_panel) if part)


def cut_between_characters(story: Story) -> Story:
    """Return the story with cuts to panels that share no character with the panel before, unless they say otherwise."""
    pairs = zip((story.panels[:1] + story.panels), story.panels, strict=False)
    return replace(story, panels=tuple(replace(panel, cut=_is_cut(before, panel)) for before, panel in pairs))


def _is_cut(before: Panel, panel: Panel) -> bool:
    old, new = set(before.characters), set(panel.characters)
    return (old != new and not old & new) if panel.cut is None else panel.cut


def load_story(path: str | Path) -> Story:
    """Read a story from a YAML file (.yaml, .yml) or one in the official text syntax (.txt).

    Raises UserError for a file that is missing or malformed and for an invalid story.
    """
    path = _find_script(str(path))
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".txt"):
        raise UserError(f"{path} is not a story script: give a .yaml file, or a .txt file in the official text syntax")
    text = read_text(path, "story script")
    if not text.strip():
        raise UserError(f"{path} is empty: add its characters and at least one panel")
    lines: Mapping[str | int, int] = {}
    if suffix == ".txt":
        parsed = parse_official(text, str(path))
        data, lines = parsed.data, parsed.lines
    else:
        data = parse_yaml(text, str(path))
    if isinstance(data, dict):
        data = {"title": path.stem.replace("_", " ").replace("-", " ").capitalize(), **data}
    story = story_from_dict(data, str(path), lines, path.parent)
    return replace(story, panels=tuple(_find_pose(panel, path.parent) for panel in story.panels))


def _find_pose(panel: Panel, folder: Path) -> Panel:
    """Return the panel with its pose as a path from `folder`, where its story lies."""
    return panel if panel.pose is None else replace(panel, pose=str(folder / Path(panel.pose).expanduser()))


def _find_script(path: str) -> Path:
    """Return the path, where `package://examples/NAME` is an example story of this package."""
    if path.startswith(PACKAGE_SCHEME):
        return Path(str(files("storydiffusion"))) / path.removeprefix(PACKAGE_SCHEME)
    return Path(path)


def story_from_dict(
    data: Any, where: str, lines: Mapping[str | int, int] | None = None, folder: Path | None = None
) -> Story:
    """Validate a plain dictionary with the keys of a YAML story.

    `where` names its source in errors, and `lines` the line of a character's name or a panel's number, if known.
    Character files lie relative to `folder`; None: the working directory.

    Raises UserError.
    """
    lines = lines or {}
    story = _mapping(data, where, required=("title", "characters", "panels"), optional=("style", "negative"))
    characters = _characters(story["characters"], where, folder or Path())
    if not isinstance(story["panels"], list):
        raise UserError(f"{where}: panels must be a list, not {_brief(story['panels'])}")
    if not story["panels"]:
        raise UserError(f"{where} has 0 panels: add at least one")
    panels = tuple(
        _panel(panel, characters, f"{_place(where, lines, number)}: panel {number}")
        for number, panel in enumerate(story["panels"], start=1)
    )
    shown = {name for panel in panels for name in panel.characters}
    for name in characters:
        if name not in shown:
            mend = suggest_name(name, characters) or f"write [{name}] in a prompt or remove it"
            raise UserError(f"{_place(where, lines, name)}: character '{name}' appears in no panel: {mend}")
    title = _text(story["title"], f"{where}: title")
    style_name = _text(story.get("style", NO_STYLE.name), f"{where}: style")
    try:
        style = find_style(style_name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    negative = _negative(story, where)
    return Story(title, tuple(characters.values()), panels, style.name, negative)


def _place(where: str, lines: Mapping[str | int, int], item: str | int) -> str:
    return f"{where}: line {lines[item]}" if item in lines else where


def _characters(data: Any, where: str, folder: Path) -> dict[str, Character]:
    """Return validated characters by normalized name."""
    if not isinstance(data, dict):
        raise UserError(f"{where}: characters must map names to descriptions (or be {{}}), not {_brief(data)}")
    characters: dict[str, Character] = {}
    for written, described in data.items():
        name = normalize_name(written) if isinstance(written, str) else ""
        if not name or "[" in name or "]" in name or name == NO_CHARACTER:
            raise UserError(
                f"{where}: '{written}' is not a valid character name: use quoted words, no brackets, not NC"
            )
        if name in characters:
            raise UserError(f"{where}: the character '{name}' is described twice: remove one, or rename it")
        if twin := find_twin(name, characters):
            raise UserError(f"{where}: the characters '{twin}' and '{name}' differ only in case: rename one")
        file = None
        if isinstance(described, dict):
            entry = _mapping(described, f"{where}: the character '{name}'", required=("file",), optional=())
            file = str(folder / Path(_text(entry["file"], f"{where}: the file of '{name}'")).expanduser())
            described = read_character(file).character.description
        text = _text(described, f"{where}: the description of '{name}'")
        if "[" in text or "]" in text:
            raise UserError(f"{where}: the description of '{name}' must not contain brackets: '{text}'")
        characters[name] = Character(name, text.rstrip(" .。"), file)
    return characters


def _panel(data: Any, characters: Mapping[str, Character], where: str) -> Panel:
    panel = _mapping(
        data,
        where,
        required=("prompt",),
        optional=("caption", "says", "cut", "negative", "seed", "pose", "place", "lock"),
    )
    prompt = _text(panel["prompt"], f"{where}: prompt")
    named = find_names(prompt)
    if not named:
        raise UserError(f"{where} names no character: write [Name], or [NC] for a panel without one, in '{prompt}'")
    if NO_CHARACTER in named and len(named) > 1:
        raise UserError(f"{where} has [NC] (no character) and [{named[1]}]: remove one in '{prompt}'")
    rest = NAME.sub("", prompt)
    if NO_CHARACTER in named and not _sentence(rest):
        raise UserError(f"{where} has nothing but [NC]: describe the image")
    if "[" in rest or "]" in rest:
        raise UserError(f"{where} has an unmatched bracket: '{prompt}'")
    for name in named:
        if name != NO_CHARACTER and name not in characters:
            known = ", ".join(characters) or "none"
            mend = suggest_name(name, [*characters, NO_CHARACTER]) or "describe it or use a known name;"
            raise UserError(f"{where} names the undefined character [{name}]: {mend} known names: {known}")
    caption = panel.get("caption", _default_caption(prompt, named))
    if not isinstance(caption, str):
        raise UserError(f"{where}: caption must be text, not {_brief(caption)}: put it in quotes, '' for none")
    cut, lock = _switch(panel, "cut", where), _switch(panel, "lock", where)
    shown = tuple(name for name in named if name != NO_CHARACTER)
    pose = _text(panel["pose"], f"{where}: pose") if "pose" in panel else None
    place = _text(panel["place"], f"{where}: place") if panel.get("place", "") != "" else ""
    says = _says(panel, where)
    negative, seed = _negative(panel, where), _seed(panel, where)
    return Panel(prompt, caption.strip(), shown, cut, negative, seed, pose, place, says, bool(lock))


def _switch(panel: Mapping[str, Any], name: str, where: str) -> bool | None:
    """Return true or false, None where the panel does not say."""
    value = panel.get(name)
    if name in panel and not isinstance(value, bool):
        raise UserError(f"{where}: {name} must be true or false, not {_brief(value)}")
    return value


def _says(panel: Mapping[str, Any], where: str) -> str:
    """Return the text of a panel's speech balloon; '' for none."""
    text = _text(panel["says"], f"{where}: says") if panel.get("says", "") != "" else ""
    if len(text) > LONGEST_SPEECH:
        raise UserError(
            f"{where}: says has {len(text)} characters, and a balloon holds {LONGEST_SPEECH}: shorten {_brief(text)}, "
            "or write it in the caption"
        )
    return text


def _negative(data: Mapping[str, Any], where: str) -> str:
    """Return the negative prompt of a panel or story; '' for none."""
    text = _text(data["negative"], f"{where}: negative") if data.get("negative", "") != "" else ""
    if "[" in text or "]" in text:
        raise UserError(f"{where}: negative must not contain brackets: '{text}': describe what to avoid in words")
    return text.rstrip(" .,。")


def _seed(panel: Mapping[str, Any], where: str) -> int | None:
    """Return the seed of a panel, None where it has none of its own."""
    seed = panel.get("seed")
    if "seed" in panel and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED):
        raise UserError(
            f"{where}: seed must be a whole number from 0 to {LARGEST_SEED}, not {_brief(seed)}: leave it out to "
            "derive it from the story's seed"
        )
    return seed


def _default_caption(prompt: str, named: list[str]) -> str:
    """Return the prompt with the characters' names, without brackets."""
    return _sentence(replace_names(prompt, {name: "" if name == NO_CHARACTER else name for name in named}))


def _sentence(text: str) -> str:
    """Normalize white space; drop the final full stop and stray leading punctuation, as in image captions."""
    return " ".join(text.split()).replace(" ,", ",").strip(" ,.。")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} must be text, not {_brief(value)}: write it in quotes")
    return " ".join(value.split())


def _brief(value: Any) -> str:
    """Return a value for an error, in quotes and shortened; 'nothing' for a key without a value."""
    return "nothing" if value is None else f"'{textwrap.shorten(str(value), 60, placeholder=' …')}'"


def _mapping(data: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    """Return `data` if it is a dictionary with all required and no unknown keys."""
    keys = ", ".join(required + optional)
    if not isinstance(data, dict):
        raise UserError(f"{where} must be a mapping with the keys {keys}, not {_brief(data)}")
    for key in data:
        if key not in required + optional:
            raise UserError(f"{where}: '{key}' is not a valid key: use {keys}")
    for key in required:
        if key not in data:
            raise UserError(f"{where} has no '{key}': add it")
    return data
