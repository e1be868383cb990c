"""Read an idea or a text: the characters, clothes, places, actions and objects of StoryWorld that it names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from storydiffusion.storyworld.truth import WITH_HAIR
from storydiffusion.writer.languages import Lexicon, Word
from storydiffusion.writer.naming import Naming, find_naming

HATS = ("cap", "tophat", "beanie", "crown")
ACCESSORIES = ("glasses", "scarf", "bowtie")
REACH = 3  # words between a color and what it colors


@dataclass
class Mention:
    """A character of an idea: kind, looks that the idea gives it (attribute → value), and name, "" for none.

    kind: "" for a person known by name alone. other: in English, a kind that the model does not draw, such as "dog".
    """

    kind: str
    looks: dict[str, str] = field(default_factory=dict)
    name: str = ""
    other: str = ""


@dataclass(frozen=True)
class Reading:
    """What an idea says: in order of mention, each once.

    plots: the words that suggest each plot. feelings: likewise, each emotion. events: the words that suggest plots and
    mean nothing else. gender: "m" or "f" by its pronouns, "" if they do not say. unknown: words that were not
    understood. not_drawn: words for characters that the model does not draw. untold: words for events of no plot.
    """

    characters: tuple[Mention, ...] = ()
    places: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    plots: Mapping[str, Sequence[str]] = field(default_factory=dict)
    feelings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    gender: str = ""
    unknown: tuple[str, ...] = ()
    not_drawn: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()

    @property
    def drawn(self) -> tuple[Mention, ...]:
        """The characters that the model draws."""
        return tuple(mention for mention in self.characters if not mention.other)


def read_idea(idea: str, lexicon: Lexicon, values: Mapping[str, Sequence[str]], is_prose: bool = False) -> Reading:
    """Read an idea, or prose, in which unknown names occur twice or beside a verb of speech.

    values: those that the image model draws, attribute → values.
    """
    words = lexicon.words(idea)
    naming = find_naming(idea, words, lexicon, is_prose)
    cast = _CastReader(words, lexicon, values, naming)
    characters = cast.read()
    if is_prose:
        characters = _unite_people(characters)
    genders = Counter(gender for word in words for gender in word.meanings.get("gender", ()))
    names = {*naming.names.values()}
    unknown = [word.written for word in words if not word.is_known and not any(word.written in name for name in names)]
    return Reading(
        characters=tuple(characters),
        places=_collect(words, "place"),
        actions=_collect(words, "action"),
        objects=_collect(words, "object"),
        plots=_collect_words(words, "plots"),
        feelings=_collect_words(words, "feelings"),
        events=tuple(dict.fromkeys(word.written for word in words if word.meanings.keys() == {"plots"})),
        gender=max("mf", key=lambda gender: genders[gender]) if genders["m"] != genders["f"] else "",
        unknown=tuple(dict.fromkeys([*unknown, *cast.unused])),
        not_drawn=tuple(dict.fromkeys(cast.not_drawn)),
        untold=tuple(dict.fromkeys(word.written for word in words if lexicon.is_in("untold", word))),
    )


def _collect(words: Sequence[Word], category: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for word in words for value in word.meanings.get(category, ())))


def _collect_words(words: Sequence[Word], category: str) -> dict[str, list[str]]:
    """Return value → the words that mean it."""
    found: dict[str, list[str]] = {}
    for word in words:
        for value in word.meanings.get(category, ()):
            found.setdefault(value, []).append(word.written)
    return found


def _unite_people(characters: list[Mention]) -> list[Mention]:
    """Return the characters of a text, where a girl or boy without a name is the person whose name comes later."""
    united = list(characters)
    for person in [each for each in characters if not each.kind and not each.other]:
        nameless = [each for each in united if each.kind in WITH_HAIR and not each.name]
        if len(nameless) == 1:
            nameless[0].name = person.name
            united.remove(person)
    return united


class _CastReader:
    """Find the characters of an idea, and assign its colors, clothes and hair to them."""

    def __init__(
        self, words: Sequence[Word], lexicon: Lexicon, values: Mapping[str, Sequence[str]], naming: Naming
    ) -> None:
        self._words, self._values, self._lexicon, self._naming = words, values, lexicon, naming
        self._characters: list[Mention] = []
        self._early: dict[str, str] = {}  # looks named before the first character
        self._used: set[int] = set()
        self.unused: list[str] = []
        self.not_drawn: list[str] = []

    def read(self) -> list[Mention]:
        people = self._naming.people
        for number, word in enumerate(self._words):
            if number in people:
                self._add(Mention("", name=people[number]))
            elif kinds := word.meanings.get("kind"):
                self._add_kind(number, kinds[0])
            elif others := word.meanings.get("other"):
                self._add_other(number, others[0])
            elif garments := word.meanings.get("garment"):
                self._add_garment(number, garments[0])
        for number, word in enumerate(self._words):
            if set(word.meanings) == {"value"} and number not in self._used:
                self.unused.append(word.written)
        return self._characters

    def _add(self, mention: Mention) -> None:
        mention.looks |= self._early
        self._early = {}
        self._characters.append(mention)

    def _add_kind(self, number: int, kind: str) -> None:
        if kind not in self._values["kind"]:
            self._add_other(number, kind)
            return
        name = self._naming.kinds.get(number, "")
        if self._is_known(name, [each for each in self._characters if each.kind == kind]):
            return
        mention = Mention(kind, name=name)
        if kind not in WITH_HAIR and (tone := self._color(number, self._values["tone"])):
            mention.looks["tone"] = tone
        self._add(mention)
        if self._is_pair(number):
            self._add(Mention(kind))

    def _add_other(self, number: int, other: str) -> None:
        self.not_drawn.append(self._words[number].written)
        name = self._naming.kinds.get(number, "")
        if not self._is_known(name, [each for each in self._characters if each.other == other]):
            self._add(Mention("", name=name, other=other))

    def _is_known(self, name: str, alike: Sequence[Mention]) -> bool:
        """Return whether one of the characters of the same kind is meant, and give it the name that it lacks."""
        if not alike or not name:
            return bool(alike)
        if any(each.name == name for each in alike):
            return True
        nameless = next((each for each in alike if not each.name), None)
        if nameless is None:
            return False
        nameless.name = name
        return True

    def _is_pair(self, number: int) -> bool:
        return any(self._lexicon.is_in("two", word) for word in self._words[max(0, number - 2) : number])

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
        step = -1 if self._lexicon.color_comes_first else 1
        for distance in range(1, REACH + 1):
            at = number + step * distance
            if not 0 <= at < len(self._words):
                return None
            meanings = self._words[at].meanings
            if meanings.keys() & {"kind", "garment", "other"}:
                return None
            found = [value for value in meanings.get("value", ()) if value in allowed]
            if found and at not in self._used:
                self._used.add(at)
                return found[0]
        return None
