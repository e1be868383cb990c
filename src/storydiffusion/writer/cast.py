"""Choose kind, name, gender and looks of a story's characters, as far as an idea or a text leaves them open."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storydiffusion.storyworld.truth import WITH_HAIR
from storydiffusion.writer.idea import Mention
from storydiffusion.writer.languages import Player, load_given_names
from storydiffusion.writer.targets import LONGEST_NAME, Target

PEOPLE = {"woman": "f", "grandmother": "f", "man": "m", "grandfather": "m"}
"""Other kinds that are people, drawn as a girl or a boy; the rest are animals."""


@dataclass(frozen=True)
class Cast:
    """A character of a story: in sentences, and in images."""

    player: Player
    looks: Mapping[str, str]


def choose_cast(
    mentions: Sequence[Mention],
    pronoun: str,
    names: Mapping[str, Sequence[str]],
    target: Target,
    rng: random.Random,
    others: Sequence[Mention] = (),
) -> list[Cast]:
    """Return the characters that are mentioned, with what is open drawn by chance.

    Args:
        pronoun: the gender of the first, by the pronouns.
        names: names to give, by gender.
        others: mentions without a part in the story; their kinds and names are not used again.
    """
    cast: list[Cast] = []
    used = {mention.name for mention in (*mentions, *others)}
    kinds = {mention.kind for mention in (*mentions, *others)}
    for number, mention in enumerate(mentions):
        gender = _find_gender(mention, "" if number else pronoun)
        kind = mention.kind or _choose_kind(mention, gender, kinds, target, rng)
        gender = {"girl": "f", "boy": "m"}.get(kind) or gender or rng.choice("mf")
        name = mention.name[:LONGEST_NAME] or rng.choice([each for each in names[gender] if each not in used])
        used.add(name)
        kinds.add(kind)
        cast.append(Cast(Player(name, kind, gender), {"kind": kind, **_dress(kind, target, rng), **mention.looks}))
    return cast


def _find_gender(mention: Mention, pronoun: str) -> str:
    """Return the gender by kind, by a known name, by pronouns, or by a name such as Olga; "" if none says."""
    known = {"girl": "f", "boy": "m"}.get(mention.kind) or PEOPLE.get(mention.other, "")
    return known or load_given_names().get(mention.name, "") or pronoun or ("f" if mention.name.endswith("a") else "")


def _choose_kind(mention: Mention, gender: str, taken: set[str], target: Target, rng: random.Random) -> str:
    """Return a kind: a child for a person, an animal for an animal that is not drawn, otherwise any."""
    if mention.other in PEOPLE or (mention.name and not mention.other):
        return {"f": "girl", "m": "boy"}[gender or rng.choice("mf")]
    kinds = [kind for kind in target.values["kind"] if kind not in taken]
    return rng.choice([kind for kind in kinds if not mention.other or kind not in (*WITH_HAIR, "robot")] or kinds)


def _dress(kind: str, target: Target, rng: random.Random) -> dict[str, str]:
    """Choose the looks by which readers know a character again; consistent self-attention keeps the others."""
    values = target.values
    looks = {"hair": rng.choice(values["hair"])} if kind in WITH_HAIR else {"tone": rng.choice(values["tone"])}
    looks |= {name: rng.choice(values[name]) for name in ("shirt", "hat_color")}
    looks["hat"] = rng.choice([hat for hat in values["hat"] if hat != "none"])
    return looks | ({"bottom": rng.choice(values["bottom"])} if target.free else {})
