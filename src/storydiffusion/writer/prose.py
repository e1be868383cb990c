"""Split prose into panels by its sentences: captions are the sentences, prompts the words that StoryWorld knows."""

import random
import re
from collections.abc import Sequence
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.writer.brief import Brief, Draft, build_story
from storydiffusion.writer.idea import Mention, Reading, read_idea
from storydiffusion.writer.languages import detect_language, load_lexicon, load_sentences
from storydiffusion.writer.targets import LONGEST_NAME, LONGEST_TITLE, Actor, Shot

SENTENCE_END = re.compile(
    r"(?<![A-Z])(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)([.!?…؟۔।॥։]+[”“»’\"')]*)\s+"  # but after an initial or a title
    r"|([。！？｡…]+[”’」）]*)\s*|\n\s*\n"
)
UNREAD = (
    "writer=rules knows no words of the text's language, so its images show one character in one place; "
    "writer=chat reads any language"
)
NO_CHARACTER = "writer=rules found no character in the text that the model draws, so the images show {description}"
LONGEST_CAPTION = 600  # characters
MOST_IN_CAST = 3
DEFAULT_ACTION = "standing"


def split_prose(brief: Brief) -> Draft:
    """Split the text of `brief` into as many panels of about equal length as it asks for.

    Raises UserError for fewer sentences than panels, or captions that would be too long.
    """
    sentences = split_sentences(brief.text)
    if len(sentences) < brief.panels:
        raise UserError(
            f"the text has {len(sentences)} sentences, fewer than panels={brief.panels}: pass panels={len(sentences)}, "
            "or end sentences by empty lines where the language has no full stops"
        )
    groups = [" ".join(group) for group in group_sentences(sentences, brief.panels)]
    longest = max(map(len, groups))
    if longest > LONGEST_CAPTION:
        raise UserError(
            f"with panels={brief.panels} a caption has {longest} characters, more than {LONGEST_CAPTION}: pass more "
            "panels, shorten the text, or let writer=chat retell it"
        )
    spoken = detect_language(brief.text)
    story = build_story(_tell(groups, brief, spoken), brief)
    notes = [UNREAD] if spoken is None else []
    if spoken is not None and not read_idea(brief.text, load_lexicon(spoken), brief.target.values, True).characters:
        notes.append(NO_CHARACTER.format(description=story.characters[0].description))
    if brief.language not in (None, spoken):
        notes.append(
            f"writer=rules does not translate, so captions are not in language={brief.language} but as written"
        )
    return Draft(story, notes=tuple(notes))


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, in order, each in one line; a paragraph ends a sentence."""
    marked = SENTENCE_END.sub(lambda found: f"{found[1] or found[2] or ''}\0", text)
    return [sentence for each in marked.split("\0") if (sentence := " ".join(each.split()))]


def group_sentences(sentences: Sequence[str], count: int) -> list[list[str]]:
    """Return `count` groups of consecutive sentences, none empty, as equal in length as whole sentences allow."""
    groups: list[list[str]] = []
    rest = list(sentences)
    for left in range(count, 0, -1):
        goal = sum(map(len, rest)) / left
        taken = 1
        while taken < len(rest) - left + 1 and sum(map(len, rest[:taken])) + len(rest[taken]) / 2 <= goal:
            taken += 1
        groups.append(rest[:taken])
        rest = rest[taken:]
    groups[-1] += rest
    return groups


def _tell(groups: Sequence[str], brief: Brief, spoken: str | None) -> dict[str, Any]:
    """Return the story as plain data; what a panel's sentences leave open stays as in the panel before."""
    rng = random.Random(f"prose/{brief.seed}/{brief.text}")
    lexicon, values = load_lexicon(spoken or "en"), brief.target.values
    cast = _cast(read_idea(brief.text, lexicon, values, is_prose=True), spoken or "en", brief, rng)
    readings = [read_idea(group, lexicon, values, is_prose=True) for group in groups]
    place = next((place for reading in readings for place in reading.places), rng.choice(values["place"]))
    shown, panels, used = cast[:1], [], []
    for group, reading in zip(groups, readings, strict=True):
        place = reading.places[0] if reading.places else place
        action = reading.actions[0] if reading.actions else DEFAULT_ACTION
        present = [
            one for one in cast if one.name in group or any(one.kind == each.kind for each in reading.characters)
        ]
        shown = (present or shown)[: brief.target.most_characters]
        actors = tuple(Actor(one.name, action if one is shown[0] else DEFAULT_ACTION, brief.emotion) for one in shown)
        shot = Shot(actors, place, reading.objects[0] if reading.objects else "none")
        panels.append({"prompt": brief.target.prompt(shot), "caption": group})
        used += shown
    characters = {one.name: brief.target.describe({"kind": one.kind, **one.looks}) for one in cast if one in used}
    return {"title": _title(groups[0]), "characters": characters, "panels": panels}


def _cast(reading: Reading, language: str, brief: Brief, rng: random.Random) -> list[Mention]:
    """Return the characters of a text, at least one, each with a name and a shirt."""
    values, names = brief.target.values, load_sentences(language).names
    kind = {"f": "girl", "m": "boy"}.get(reading.gender) or rng.choice(values["kind"])
    cast = list(reading.characters[:MOST_IN_CAST]) or [Mention(kind, name="".join(reading.names[:1]))]
    taken = set(reading.names)
    for number, one in enumerate(cast):
        spoken = reading.gender if number == 0 else ""
        gender = {"girl": "f", "boy": "m"}.get(one.kind) or spoken or rng.choice("mf")
        free = [name for name in names[gender] if name not in taken]
        one.name = one.name[:LONGEST_NAME] or rng.choice(free)
        taken.add(one.name)
        one.looks.setdefault("shirt", rng.choice(values["shirt"]))
    return cast


def _title(caption: str) -> str:
    """Return the first words of a caption."""
    if len(caption) <= LONGEST_TITLE // 2:
        return caption.rstrip(".。")
    head = caption[: LONGEST_TITLE // 2]
    return f"{head.rpartition(' ')[0] or head} …"
