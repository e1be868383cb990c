"""Read an idea: the characters, clothes, places, actions and objects of StoryWorld that it names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from storydiffusion.storyworld.truth import WITH_HAIR
from storydiffusion.writer.languages import Lexicon, Word

HATS = ("cap", "tophat", "beanie", "crown")
ACCESSORIES = ("glasses", "scarf", "bowtie")
REACH = 3  # words between a color and what it colors


@dataclass
class Mention:
    """A character of an idea: kind, looks that the idea gives it (attribute → value), and name, "" for none."""

    kind: str
    looks: dict[str, str] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Reading:
    """What an idea says: in order of mention, each once.

    plots: how many words suggest each plot. gender: "m" or "f" by its pronouns, "" if they do not say. unknown: words
    that were not understood.
    """

    characters: tuple[Mention, ...] = ()
    names: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    plots: Mapping[str, int] = field(default_factory=dict)
    gender: str = ""
    unknown: tuple[str, ...] = ()


def read_idea(idea: str, lexicon: Lexicon, values: Mapping[str, Sequence[str]], is_prose: bool = False) -> Reading:
    """Read an idea, or prose, in which a name occurs twice unless it follows a word such as "called".

    values: those that the image model draws, attribute → values; others count as unknown.
    """
    words = list(lexicon.words(idea))
    names = _find_names(idea, words, lexicon, is_prose)
    attire = _Attire(words, lexicon, values)
    characters = attire.read()
    for mention, name in zip(characters, names, strict=False):
        mention.name = name
    genders = Counter(gender for word in words for gender in word.meanings.get("gender", ()))
    unknown = [word.written for word in words if not word.is_known and not any(word.written in name for name in names)]
    return Reading(
        characters=tuple(characters),
        names=tuple(names),
        places=_collect(words, "place"),
        actions=_collect(words, "action"),
        objects=_collect(words, "object"),
        plots=Counter(plot for word in words for plot in word.meanings.get("plots", ())),
        gender=max("mf", key=lambda gender: genders[gender]) if genders["m"] != genders["f"] else "",
        unknown=tuple(dict.fromkeys([*unknown, *attire.unused])),
    )


def _collect(words: Sequence[Word], category: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for word in words for value in word.meanings.get(category, ())))


def _find_names(idea: str, words: Sequence[Word], lexicon: Lexicon, is_prose: bool) -> list[str]:
    """Return the names in an idea: after "called", and unknown capitalized words, where nouns are not capitalized."""
    counts = Counter(word.written for word in words)
    if not lexicon.has_spaces:
        return [name] if (name := lexicon.given_name(idea)) else []
    names = []
    for number, word in enumerate(words):
        after = words[number + 1].written if number + 1 < len(words) else ""
        is_named = number > 0 and lexicon.names_next(words[number - 1])
        is_capital = word.written[:1].isupper() and not word.is_known
        opens = number == 0 and after[:1].islower() and not is_prose
        within = not word.starts_sentence and lexicon.language != "de" and counts[word.written] > is_prose
        if is_named or (is_capital and (opens or within)):
            names.append(word.written)
    return list(dict.fromkeys(names))


class _Attire:
    """Assign the colors, clothes and hair of an idea to its characters."""

    def __init__(self, words: Sequence[Word], lexicon: Lexicon, values: Mapping[str, Sequence[str]]) -> None:
        self._words, self._values = words, values
        self._color_comes_first = lexicon.color_comes_first
        self._characters: list[Mention] = []
        self._early: dict[str, str] = {}  # looks named before the first character
        self._used: set[int] = set()
        self.unused: list[str] = []

    def read(self) -> list[Mention]:
        for number, word in enumerate(self._words):
            if kinds := word.meanings.get("kind"):
                self._add_kind(number, kinds[0])
            elif garments := word.meanings.get("garment"):
                self._add_garment(number, garments[0])
        for number, word in enumerate(self._words):
            if set(word.meanings) == {"value"} and number not in self._used:
                self.unused.append(word.written)
        return self._characters

    def _add_kind(self, number: int, kind: str) -> None:
        if kind not in self._values["kind"]:
            self.unused.append(self._words[number].written)
            return
        if any(mention.kind == kind for mention in self._characters):
            return
        mention = Mention(kind, self._early)
        self._early = {}
        if kind not in WITH_HAIR and (tone := self._color(number, self._values["tone"])):
            mention.looks["tone"] = tone
        self._characters.append(mention)

    def _add_garment(self, number: int, garment: str) -> None:
        looks = self._characters[-1].looks if self._characters else self._early
        if garment in HATS:
            color = self._color(number, self._values["hat_color"])
            looks |= {"hat": garment, "hat_color": color or self._values["hat_color"][0]}
        elif garment in ACCESSORIES:
            looks["accessory"] = garment
        elif color := self._color(number, self._values[garment]):
            looks[garment] = color
            if garment == "shirt" and (pattern := self._color(number, self._values["pattern"])):
                looks["pattern"] = pattern
        else:
            self.unused.append(self._words[number].written)

    def _color(self, number: int, allowed: Sequence[str]) -> str | None:
        """Return the nearest unused value of `allowed` on the side of word `number` where colors stand."""
        step = -1 if self._color_comes_first else 1
        for distance in range(1, REACH + 1):
            at = number + step * distance
            if not 0 <= at < len(self._words):
                return None
            meanings = self._words[at].meanings
            if "kind" in meanings or "garment" in meanings:
                return None
            found = [value for value in meanings.get("value", ()) if value in allowed]
            if found and at not in self._used:
                self._used.add(at)
                return found[0]
        return None
