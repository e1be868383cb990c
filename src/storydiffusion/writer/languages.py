"""The languages of the rules writer: for each a lexicon, to read ideas and texts, and sentences, to write captions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from storydiffusion.errors import UserError
from storydiffusion.writer.word_files import load_words

FOLDER = Path(__file__).with_name("languages")
LANGUAGES = ("en", "de", "es", "fr", "zh")
"""Of an idea in none of them, nothing is read."""

CATEGORIES = (
    "kind", "other", "gender", "garment", "value", "place", "action", "object", "plots", "feelings", "negated_plots",
)  # fmt: skip
LISTS = ("stop", "name_after", "negation", "joint", "article", "copula", "speech", "two", "untold")
HAN = re.compile(r"[\u3400-\u9fff]")
OTHER_SCRIPT = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")  # Japanese kana, Korean
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
SLOT = re.compile(r"\{(?P<name>\w+)(\.(?P<form>\w+))?(:(?P<m>[^|}]*)\|(?P<f>[^}]*))?\}")
SENTENCE_START = re.compile(r"(^|[.!?…—] |^[“„«¡¿]\s?)$")
CLAUSE_END = re.compile(r"[.,;:!?…—“”„«»\n。，！？；：、]")
NEGATED_AFTER, NEGATED_BEFORE = 3, 3  # words that a negation concerns; before it in German alone
KNOWN_SHARE = 1 / 3

Meanings = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Word:
    """A word of a text: as written, and its meanings, category → values. Stop words say nothing by themselves.

    start: where it begins in the text. gap: what stands between it and the word before. is_negated: its meanings are
    those that it has when negated.
    """

    written: str
    meanings: Meanings
    is_stop: bool
    starts_sentence: bool
    start: int = 0
    gap: str = " "
    is_negated: bool = False

    @property
    def is_known(self) -> bool:
        return bool(self.meanings) or self.is_stop or self.is_negated

    @property
    def is_capital(self) -> bool:
        return self.written[:1].isupper()


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
        self._lists = {name: _compile(content[name]) for name in LISTS}
        lists = [*(content[name] for name in LISTS), *(each for name in CATEGORIES for each in content[name].values())]
        self._any = "|".join(sorted({each for patterns in lists for each in patterns.split()}, key=len, reverse=True))

    def words(self, text: str) -> list[Word]:
        """Return the words of a text; of Chinese, the parts that the lexicon knows and what lies between.

        What is negated, as in "did not run", has no meaning but those of `negated_plots`.
        """
        words, end = [], 0
        for piece in re.finditer(r"[\w-]+", text) if self.has_spaces else self._segment(text):
            before = text[: piece.start()].rstrip(" \n“„«\"'—¡¿")
            starts = not before or before[-1] in ".!?…。！？"
            meanings, is_stop = _look_up(self, piece[0].lower())
            words.append(Word(piece[0], meanings, is_stop, starts, piece.start(), text[end : piece.start()]))
            end = piece.end()
        negated = self._find_negated(words)
        return [self._read_negation(word, number in negated) for number, word in enumerate(words)]

    def values(self, category: str) -> list[str]:
        """Return the values of a category that the lexicon has words for."""
        return list(self._patterns[category])

    def is_in(self, name: str, word: Word) -> bool:
        """Return whether a word is in one of LISTS, such as `name_after`, after which names stand."""
        return bool(self._lists[name].fullmatch(word.written.lower()))

    def get_pattern(self, name: str) -> str:
        """Return a regular expression for the words in one of LISTS."""
        return self._lists[name].pattern

    def given_names(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield where a Chinese text gives a name after 叫, and the name."""
        pattern = rf"(?:{self._lists['name_after'].pattern})([\u3400-\u9fff]{{1,4}}?)(?=的|和|[^\u3400-\u9fff]|$)"
        for found in re.finditer(pattern, text):
            yield found.start(), found[1]

    def find(self, word: str) -> tuple[Meanings, bool]:
        """Return the meanings of a word in lower case, and whether it is a stop word."""
        meanings = {}
        for name, values in self._patterns.items():
            if found := tuple(value for value, pattern in values.items() if pattern.fullmatch(word)):
                meanings[name] = found
        is_stop = (len(word) == 1 and self.has_spaces) or any(each.fullmatch(word) for each in self._lists.values())
        return meanings, is_stop

    def _find_negated(self, words: Sequence[Word]) -> set[int]:
        """Return the numbers of the words that a negation in their clause concerns; two negations cancel."""
        negated: set[int] = set()
        for number, word in enumerate(words):
            if not self.is_in("negation", word) or number in negated:
                continue
            for at in range(number + 1, min(number + 1 + NEGATED_AFTER, len(words))):
                if CLAUSE_END.search(words[at].gap) or self.is_in("joint", words[at]):
                    break
                negated.add(at)
            if self.language == "de":
                negated |= set(self._find_verbs_before(words, number))
        return negated

    def _find_verbs_before(self, words: Sequence[Word], number: int) -> Iterator[int]:
        for at in range(number - 1, max(-1, number - 1 - NEGATED_BEFORE), -1):
            if CLAUSE_END.search(words[at + 1].gap) or self.is_in("joint", words[at]):
                return
            if words[at].meanings.keys() & {"action", "plots", "feelings"}:
                yield at

    def _read_negation(self, word: Word, is_negated: bool) -> Word:
        if not is_negated:
            return replace(
                word, meanings={name: each for name, each in word.meanings.items() if name != "negated_plots"}
            )
        plots = word.meanings.get("negated_plots")
        return replace(word, meanings={"plots": plots} if plots else {}, is_negated=bool(word.meanings))

    def _segment(self, text: str) -> Iterator[re.Match[str]]:
        return re.finditer(rf"{self._any}|[^\W\u3400-\u9fff]+|[\u3400-\u9fff]", text)


@lru_cache(maxsize=20_000)
def _look_up(lexicon: Lexicon, word: str) -> tuple[Meanings, bool]:
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
    """Return the language of LANGUAGES in which most words of a text are known.

    None if that are at most a third, or if another language knows more. Capitalized unknown words may be names and do
    not count; a text of names alone is taken as English.
    """
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
        words = load_lexicon(language).words(beginning)
        counted = [word for word in words if word.is_known or not word.is_capital]
        shares[language] = sum(word.is_known for word in counted) / len(counted) if counted else KNOWN_SHARE
    best = max(shares, key=lambda language: shares[language])
    if shares[best] < KNOWN_SHARE or (shares[best] == KNOWN_SHARE and any(map(str.islower, beginning.split()))):
        return None
    return None if _share_of_others(beginning) > shares[best] else best


def _share_of_others(text: str) -> float:
    """Return the largest share of words that are frequent in a language that has no lexicon."""
    words = re.findall(r"[\w-]+", text.lower())
    return max(sum(word in known for word in words) / max(1, len(words)) for known in _load_others())


@cache
def _load_others() -> list[frozenset[str]]:
    return [frozenset(words.split()) for words in load_words(FOLDER / "others.yaml").values()]


@cache
def load_given_names() -> Mapping[str, str]:
    """Return the gender, "m" or "f", of given names."""
    known = {name: gender for gender, names in load_words(FOLDER / "names.yaml").items() for name in names.split()}
    for language in LANGUAGES:
        for gender, names in load_sentences(language).names.items():
            known |= dict.fromkeys(names, gender)
    return known


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

    def opening(self, who: str, version: int) -> str:
        """Return the sentence that says who the hero is, `one`, or hero and friend, `both`."""
        return self._content["openings"][who][version]

    def join(self, sentences: Sequence[str]) -> str:
        """Return sentences one after the other."""
        return ("" if self.language == "zh" else " ").join(sentences)

    def fill(self, template: str, players: Mapping[str, Player], thing: str | None, there: str) -> str:
        """Fill the slots of a sentence; `players` are hero and friend, where there is one."""
        filled = ""
        position = 0
        for slot in SLOT.finditer(template):
            filled += template[position : slot.start()]
            value = self._value(slot, players, thing, there)
            filled = self._elide(filled, value)
            filled += _capitalize(value) if SENTENCE_START.search(filled) else value
            position = slot.end()
        return filled + template[position:]

    def _elide(self, before: str, value: str) -> str:
        """Return the text before a value, where its last word changes before some sounds, as in "d'Anna"."""
        for word, (sounds, changed) in self._content.get("elision", {}).items():
            if re.match(sounds, value.lower()) and re.search(rf"\b{word} $", before):
                return before[: -len(word) - 1] + changed
        return before

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
