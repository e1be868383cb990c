"""Find the names in an idea or a text, and which kind each belongs to: none, unless the grammar says so."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from storydiffusion.writer.languages import Lexicon, Word, load_given_names

REACH = 4  # words between a kind and "called", or between an article and the kind


@dataclass(frozen=True)
class Naming:
    """names: number of a word → the name that it is. kinds: number of a kind's word → its name."""

    names: Mapping[int, str]
    kinds: Mapping[int, str]

    @property
    def people(self) -> Mapping[int, str]:
        """The names that belong to no kind: those of people, number of the first word → name."""
        paired, people = set(self.kinds.values()), {}
        for number, name in self.names.items():
            if name not in paired and name not in people.values():
                people[number] = name
        return people


def find_naming(text: str, words: Sequence[Word], lexicon: Lexicon, is_prose: bool) -> Naming:
    """Return the names of a text and their kinds. In prose a name needs a sign of being one, or occurs twice."""
    if not lexicon.has_spaces:
        return _find_chinese(text, words, lexicon)
    names = {number: words[number].written for number in _find_names(words, lexicon, is_prose)}
    kinds: dict[int, str] = {}
    for number, name in names.items():
        kind = _find_kind(words, number, lexicon)
        if kind is not None and kind not in kinds:
            kinds[kind] = name
    return Naming(names, kinds)


def is_kind(word: Word) -> bool:
    """Return whether a word is a kind of character, drawn or not."""
    return bool(word.meanings.keys() & {"kind", "other"})


def _find_names(words: Sequence[Word], lexicon: Lexicon, is_prose: bool) -> Iterator[int]:
    """Yield the numbers of the words that are names.

    Known given names, words after "called", and unknown capitalized words, where nouns are not capitalized: the first
    word of an idea before a small one, others within a sentence; in prose only beside a verb of speech, or repeated.
    """
    counts = Counter(word.written for word in words)
    for number, word in enumerate(words):
        if word.is_capital and (
            _is_after_called(words, number, lexicon)
            or _is_given(word)
            or (not word.is_known and _is_in_name_position(words, number, lexicon, is_prose, counts[word.written]))
        ):
            yield number


def _is_given(word: Word) -> bool:
    """Return whether a word is a given name; one that means something else, as Rose, is none before a sentence."""
    return word.written in load_given_names() and not is_kind(word) and not (word.is_known and word.starts_sentence)


def _is_in_name_position(words: Sequence[Word], number: int, lexicon: Lexicon, is_prose: bool, count: int) -> bool:
    """Return whether an unknown capitalized word, which occurs `count` times, stands where names do."""
    following = words[number + 1].written if number + 1 < len(words) else ""
    if number == 0 and not is_prose and following[:1].islower():
        return True
    if lexicon.language == "de":
        return False
    within = not words[number].starts_sentence and (not is_prose or count > 1)
    return within or any(lexicon.is_in("speech", each) for each in _neighbors(words, number))


def _neighbors(words: Sequence[Word], number: int) -> Iterator[Word]:
    """Yield the words beside a word without punctuation between."""
    if number > 0 and not words[number].gap.strip():
        yield words[number - 1]
    if number + 1 < len(words) and not words[number + 1].gap.strip():
        yield words[number + 1]


def _is_after_called(words: Sequence[Word], number: int, lexicon: Lexicon) -> bool:
    """Return whether a word follows "called", or "name is"."""
    before = [words[at] for at in range(max(0, number - 2), number)]
    if not before or words[number].gap.strip():
        return False
    if lexicon.is_in("name_after", before[-1]):
        return True
    return lexicon.is_in("copula", before[-1]) and len(before) == 2 and lexicon.is_in("name_after", before[0])


def _find_kind(words: Sequence[Word], number: int, lexicon: Lexicon) -> int | None:
    """Return the number of the kind that a name belongs to.

    As in "a cat called Anna", "the cat Anna", "Anna the cat", "Anna, a cat" and "Anna is a cat".
    """
    if _is_after_called(words, number, lexicon):
        return _find_kind_before(words, number)
    if number > 0 and not words[number].gap.strip() and is_kind(words[number - 1]):
        return number - 1
    return _find_apposition(words, number + 1, lexicon)


def _find_kind_before(words: Sequence[Word], number: int) -> int | None:
    for at in range(number - 1, max(-1, number - 1 - REACH), -1):
        if is_kind(words[at]):
            return at
        if any(mark in words[at].gap for mark in ".!?。"):
            return None
    return None


def _find_apposition(words: Sequence[Word], at: int, lexicon: Lexicon) -> int | None:
    """Return the kind of the noun phrase that follows a name as its apposition or after "is"."""
    if at >= len(words):
        return None
    gap = words[at].gap.strip()
    if not gap and lexicon.is_in("copula", words[at]):
        at += 1
    elif gap != "," and not (not gap and _is_definite(words[at], lexicon)):
        return None
    if at >= len(words) or not lexicon.is_in("article", words[at]):
        return None
    for kind in range(at + 1, min(at + REACH, len(words))):
        if words[kind].gap.strip():
            return None
        if is_kind(words[kind]):
            return kind
    return None


def _is_definite(word: Word, lexicon: Lexicon) -> bool:
    """Return whether a word is an article that joins a name to a kind without a comma, as in "Anna the cat"."""
    return lexicon.language != "de" and word.written in ("the", "el", "la", "le")


def _find_chinese(text: str, words: Sequence[Word], lexicon: Lexicon) -> Naming:
    """Return the names after 叫, of the kind before it, or after 的."""
    names, kinds = {}, {}
    for start, name in lexicon.given_names(text):
        number = next(at for at, word in enumerate(words) if word.start >= start)
        names[number] = name
        end = text.index(name, start) + len(name)
        is_described = text[end : end + 1] == "的"
        numbers = [at for at, word in enumerate(words) if is_kind(word) and (word.start >= end) == is_described]
        if numbers:
            kinds[numbers[0] if is_described else numbers[-1]] = name
    return Naming(names, kinds)
