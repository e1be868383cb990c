"""The languages of the rules writer: for each a lexicon, to read ideas and texts, and sentences, to write captions."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from storydiffusion.errors import UserError
from storydiffusion.writer.word_files import load_words

FOLDER = Path(__file__).with_name("languages")
LANGUAGES = ("en", "de", "es", "fr", "zh")
"""An idea in none of them is read as far as possible as English."""

CATEGORIES = ("kind", "gender", "garment", "value", "place", "action", "object", "plots")
HAN = re.compile(r"[\u3400-\u9fff]")
OTHER_SCRIPT = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")  # Japanese kana, Korean
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
SLOT = re.compile(r"\{(?P<name>\w+)(\.(?P<form>\w+))?(:(?P<m>[^|}]*)\|(?P<f>[^}]*))?\}")
SENTENCE_START = re.compile(r"(^|[.!?…—] |^[“„«¡¿]\s?)$")


@dataclass(frozen=True)
class Word:
    """A word of a text: as written, and its meanings, category → values. Stop words say nothing by themselves."""

    written: str
    meanings: Mapping[str, tuple[str, ...]]
    is_stop: bool
    starts_sentence: bool

    @property
    def is_known(self) -> bool:
        return bool(self.meanings) or self.is_stop


class Lexicon:
    """The words of one language: `color` says whether a color stands before or after what it colors."""

    def __init__(self, language: str) -> None:
        content = load_words(FOLDER / language / "lexicon.yaml")
        self.language = language
        self.color_comes_first = content["color"] == "before"
        self.has_spaces = language != "zh"
        self._patterns = {
            name: {value: _compile(patterns) for value, patterns in content[name].items()} for name in CATEGORIES
        }
        self._stop, self._name_after = _compile(content["stop"]), _compile(content["name_after"])
        lists = [content["stop"], *(patterns for name in CATEGORIES for patterns in content[name].values())]
        self._any = "|".join(sorted({each for patterns in lists for each in patterns.split()}, key=len, reverse=True))

    def words(self, text: str) -> Iterator[Word]:
        """Yield the words of a text; of Chinese, the parts that the lexicon knows and what lies between."""
        pieces = re.finditer(r"[\w-]+", text) if self.has_spaces else self._segment(text)
        for piece in pieces:
            written, before = piece[0], text[: piece.start()].rstrip(" \n“„«\"'—¡¿")
            yield Word(written, *self._look_up(written.lower()), not before or before[-1] in ".!?…。！？")

    def values(self, category: str) -> list[str]:
        """Return the values of a category that the lexicon has words for."""
        return list(self._patterns[category])

    def names_next(self, word: Word) -> bool:
        """Return whether the word after `word` is a name, as after "called"."""
        return bool(self._name_after.fullmatch(word.written.lower()))

    def given_name(self, text: str) -> str | None:
        """Return the name that a Chinese text gives after 叫."""
        found = re.search(rf"(?:{self._name_after.pattern})([\u3400-\u9fff]{{1,4}}?)(?=的|[^\u3400-\u9fff]|$)", text)
        return found[1] if found else None

    def _look_up(self, word: str) -> tuple[Mapping[str, tuple[str, ...]], bool]:
        return _look_up(self, word)

    def find(self, word: str) -> tuple[Mapping[str, tuple[str, ...]], bool]:
        """Return the meanings of a word in lower case, and whether it is a stop word."""
        meanings = {}
        for name, values in self._patterns.items():
            if found := tuple(value for value, pattern in values.items() if pattern.fullmatch(word)):
                meanings[name] = found
        is_stop = (len(word) == 1 and self.has_spaces) or bool(self._stop.fullmatch(word))
        return meanings, is_stop or bool(self._name_after.fullmatch(word))

    def _segment(self, text: str) -> Iterator[re.Match[str]]:
        return re.finditer(rf"{self._any}|[^\W\u3400-\u9fff]+|[\u3400-\u9fff]", text)


@lru_cache(maxsize=20_000)
def _look_up(lexicon: Lexicon, word: str) -> tuple[Mapping[str, tuple[str, ...]], bool]:
    return lexicon.find(word)


def _compile(patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns.split()))


@cache
def load_lexicon(language: str) -> Lexicon:
    """Return the lexicon of one of LANGUAGES."""
    return Lexicon(language)


def check_language(language: str) -> None:
    """Raise UserError if the rules writer has no sentences in `language`."""
    if language not in LANGUAGES:
        raise UserError(
            f"language={language} is none of {', '.join(LANGUAGES)}, in which writer=rules writes; "
            "choose one of them, or writer=chat"
        )


def detect_language(text: str) -> str | None:
    """Return the language of LANGUAGES in which most words of a text are known; None if fewer than a third are."""
    if OTHER_SCRIPT.search(text):
        return None
    if HAN.search(text):
        return "zh"
    beginning = text[:2000]
    letters = sum(map(str.isalpha, beginning))
    if letters and len(LATIN.findall(beginning)) < letters / 2:  # elsewhere single letters would count as known words
        return None
    shares = {}
    for language in LANGUAGES[:-1]:
        words = list(load_lexicon(language).words(beginning))
        shares[language] = sum(word.is_known for word in words) / max(1, len(words))
    best = max(shares, key=lambda language: shares[language])
    return best if shares[best] > 1 / 3 else None


@dataclass(frozen=True)
class Player:
    """A character in sentences: its name, kind and grammatical gender, "m" or "f"."""

    name: str
    kind: str
    gender: str


class Sentences:
    """The sentences of one language, with slots for hero, friend, object and place."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._content = load_words(FOLDER / language / "captions.yaml")
        self.names: Mapping[str, list[str]] = self._content["names"]

    def beat(self, plot: str, beat: str) -> list[str]:
        """Return the versions of a beat of a plot, or of its `title`."""
        return self._content["plots"][plot][beat]

    def visits(self, tone: str, place: str) -> list[str]:
        """Return the sentences of visits to a place in a tone."""
        return self._content["visits"][tone][place]

    def habits(self) -> Mapping[str, str]:
        """Return the sentences about what somebody always does, action → sentence."""
        return self._content["habits"]

    def fill(self, template: str, players: Mapping[str, Player], thing: str | None, there: str) -> str:
        """Fill the slots of a sentence; `players` are hero and friend, where there is one."""
        filled = ""
        position = 0
        for slot in SLOT.finditer(template):
            filled += template[position : slot.start()]
            value = self._value(slot, players, thing, there)
            filled += _capitalize(value) if SENTENCE_START.search(filled) else value
            position = slot.end()
        return filled + template[position:]

    def _value(self, slot: re.Match[str], players: Mapping[str, Player], thing: str | None, there: str) -> str:
        name, form = slot["name"], slot["form"]
        if name == "there":
            return self._content["places"][there]
        if name == "object":
            return self._content["objects"][thing][form]
        if name == "both":
            return slot["f"] if all(player.gender == "f" for player in players.values()) else slot["m"]
        player = players[name]
        if form:
            return self._content["kinds"][player.kind][form]["mf".index(player.gender)]
        return player.name if slot["m"] is None else slot[player.gender]


@cache
def load_sentences(language: str) -> Sentences:
    """Return the sentences of one of LANGUAGES."""
    return Sentences(language)


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
