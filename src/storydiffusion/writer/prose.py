"""Split prose into panels by its sentences: captions are the sentences, prompts the words that StoryWorld knows."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storydiffusion.errors import UserError
from storydiffusion.writer.brief import Brief, Draft, build_story
from storydiffusion.writer.cast import Cast, choose_cast
from storydiffusion.writer.idea import Mention, Reading, read_idea
from storydiffusion.writer.languages import detect_language, load_lexicon, load_sentences
from storydiffusion.writer.notes import describe_not_drawn
from storydiffusion.writer.reveal import SHARED, frame, reveal
from storydiffusion.writer.sentences import group_sentences, split_sentences
from storydiffusion.writer.targets import LONGEST_TITLE, MOST_IN_CAST, Actor, Shot

UNREAD = (
    "writer=rules knows no words of the text's language, so its images show one character in one place; "
    "writer=chat reads any language"
)
NO_CHARACTER = "writer=rules found no character in the text that the model draws, so the images show {description}"
NO_MOODS = (
    "the model draws no moods, so emotion={emotion} changes nothing in the images of a text; choose another model"
)
LONGEST_CAPTION = 600  # characters
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
    prose = _read(groups, brief)
    shots = _show(prose, brief)
    used = {actor.name for shot in shots for actor in shot.actors}
    story = {
        "title": _title(groups[0]),
        "characters": {
            one.player.name: brief.target.describe(one.looks) for one in prose.cast if one.player.name in used
        },
        "panels": [
            {"prompt": brief.target.prompt(shot), "caption": group} for group, shot in zip(groups, shots, strict=True)
        ],
    }
    return Draft(build_story(story, brief), notes=tuple(_remarks(prose, brief)))


@dataclass(frozen=True)
class Prose:
    """A text as it was read, as a whole and in the parts of its panels; its language, None for an unknown one."""

    language: str | None
    whole: Reading
    parts: Sequence[tuple[str, Reading]]
    cast: Sequence[Cast]


def _read(groups: Sequence[str], brief: Brief) -> Prose:
    language = detect_language(brief.text)
    rng = random.Random(f"prose/{brief.seed}/{brief.text}")
    names, values = load_sentences(language or "en").names, brief.target.values
    if language is None:
        cast = choose_cast([Mention("")], "", names, brief.target, rng)
        return Prose(None, Reading(), [(group, Reading()) for group in groups], cast)
    lexicon = load_lexicon(language)
    whole = read_idea(brief.text, lexicon, values, is_prose=True)
    nobody = Mention({"f": "girl", "m": "boy"}.get(whole.gender, ""))
    cast = choose_cast(whole.drawn[:MOST_IN_CAST] or [nobody], whole.gender, names, brief.target, rng, whole.drawn)
    parts = [(group, read_idea(group, lexicon, values, is_prose=True)) for group in groups]
    return Prose(language, whole, parts, cast)


def _show(prose: Prose, brief: Brief) -> list[Shot]:
    """Return what the images show; what a panel's sentences leave open stays as in the panel before.

    An emotion appears from the second panel on, as in a story from an idea.
    """
    rng = random.Random(f"prose/images/{brief.seed}/{brief.text}")
    places = [place for _, reading in prose.parts for place in reading.places]
    place = places[0] if places else rng.choice(brief.target.values["place"])
    start = min(1, len(prose.parts) - 1)
    present, shots = prose.cast[:1], []
    for number, (group, reading) in enumerate(prose.parts):
        place = reading.places[0] if reading.places else place
        present = (_find_present(prose.cast, group, reading) or present)[: brief.target.most_characters]
        emotion = brief.emotion if number >= start else None
        actors = tuple(_act(one, one is present[0], reading, emotion) for one in present)
        shots.append(Shot(actors, place, reading.objects[0] if reading.objects else "none"))
    return frame(reveal(shots, brief.emotion, brief.target, start, rng) if brief.emotion else shots)


def _act(one: Cast, is_first: bool, reading: Reading, emotion: str | None) -> Actor:
    """Return a character in an image: the first does what the sentences say, the others stand."""
    action = reading.actions[0] if reading.actions and is_first else DEFAULT_ACTION
    return Actor(one.player.name, action, emotion if is_first or emotion in SHARED else None)


def _find_present(cast: Sequence[Cast], group: str, reading: Reading) -> list[Cast]:
    """Return the characters that sentences name, by name or kind."""
    kinds = [mention.kind for mention in reading.characters]
    named = [one for one in cast if re.search(rf"(?<![^\W_]){re.escape(one.player.name)}(?![a-z])", group)]
    found = [one for one in cast if one in named or one.player.kind in kinds]
    return [one for one in found if one in named or not _has_named_twin(one, named)]


def _has_named_twin(one: Cast, named: Sequence[Cast]) -> bool:
    """Return whether another character of the same kind is called by name, so that the kind means that one."""
    return any(each is not one and each.player.kind == one.player.kind for each in named)


def _remarks(prose: Prose, brief: Brief) -> Iterator[str]:
    """Yield one sentence about each thing that the images do not show as the text says it."""
    if prose.language is None:
        yield UNREAD
    elif not prose.whole.drawn:
        yield NO_CHARACTER.format(description=brief.target.describe(prose.cast[0].looks))
    yield from describe_not_drawn(prose.whole, brief.target, ", so the images leave them out")
    if brief.language not in (None, prose.language):
        yield f"writer=rules does not translate, so captions are not in language={brief.language} but as written"
    if brief.emotion and not brief.target.draws_moods:
        yield NO_MOODS.format(emotion=brief.emotion)


def _title(caption: str) -> str:
    """Return the first words of a caption."""
    if len(caption) <= LONGEST_TITLE // 2:
        return caption.rstrip(".。")
    head = caption[: LONGEST_TITLE // 2]
    return f"{head.rpartition(' ')[0] or head} …"
