"""Split prose into sentences, and group them: speech stays with who says it, and abbreviations end nothing."""

import re
from collections.abc import Iterator, Sequence
from functools import cache

from storydiffusion.writer.languages import LANGUAGES, load_lexicon

ABBREVIATIONS = """
    Mr Mrs Ms Dr Prof St Sr Sra Jr Capt Gen Rev Hon Mme Mlle Hr Fr Frl Dn Dña Ud Uds
    No Nr Vol Fig Bd Abb pp vs viz cf bzw ca evtl ggf inkl z.B d.h u.a e.g i.e p.ej p.ex c.-à-d
"""
"""Words before a full stop that ends no sentence; other ones, such as p.m. and usw., end one before a capital."""
LONGEST_SPEECH = 200  # characters in quotes that stay together

_CLOSERS = {"“": "”", "„": "“”", "«": "»", "»": "«", '"': '"', "「": "」", "『": "』"}
_END = re.compile(r"[.!?…؟۔।॥։]+(?: »|[”“»«’\"')]*)(?=\s|$)|[。！？｡…]+[”’」』）]*")
_ABBREVIATED = re.compile(
    rf"(?:(?<![^\W_])(?:{'|'.join(re.escape(each) for each in ABBREVIATIONS.split())}|(?<![.'’])[A-Za-z]|(?<=\.)[A-Z])"
    r"|\b(?:am|der|dem|den|des|die|das|vom|zum|zur|seit|ab|bis|Am|Der|Die|Das|Vom|Zum|Seit|Ab|Bis) \d{1,3})$"
)
_NUMBERED = re.compile(r"(?<![^\W_])(?:No|Nr|Vol|Fig|Bd|Abb|pp)$")
_MONTH = re.compile(
    r"\d{1,2}\. (?:Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)\b"
)
_HAN_SPEAKER = re.compile(r"[\u3400-\u9fff]{1,8}?[说問问喊答道叫想][。，：,:]?")
_OPENING = re.compile(r"[\s“„«»\"'(¡¿—–-]*")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, in order, each in one line; a paragraph ends a sentence."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return [sentence for paragraph in paragraphs for sentence in _split_paragraph(paragraph)]


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


def _split_paragraph(text: str) -> Iterator[str]:
    has_capitals = any(map(str.isupper, text))
    speech = _find_speech(text)
    begin = 0
    for found in _END.finditer(text):
        at = found.end()
        is_inside = any(start < found.start() and at <= end for start, end in speech)
        if not is_inside and _ends(text, found, has_capitals):
            yield text[begin:at].strip()
            begin = at
    if rest := text[begin:].strip():
        yield rest


def _ends(text: str, found: re.Match[str], has_capitals: bool) -> bool:
    """Return whether a mark such as a full stop ends a sentence, by what stands before and after it."""
    before, after = text[: found.start()], text[found.end() :]
    following = after[_OPENING.match(after).end() :][:1]  # type: ignore[union-attr]  # the pattern matches nothing, too
    if following.islower() and has_capitals:
        return False
    if found[0] == "." and _ABBREVIATED.search(before) and (following.isdigit() or not _NUMBERED.search(before)):
        return False
    if found[0] == "." and _MONTH.match(text, len(before) - len(re.search(r"\d*$", before)[0])):  # type: ignore[index]
        return False
    if found[0][-1] in "”“»«\"’'」』":
        return not (_compile_speaker().match(after) or _HAN_SPEAKER.match(after))
    return True


@cache
def _compile_speaker() -> re.Pattern[str]:
    """Return the pattern of who says what stood in quotes, with the verbs of speech of all lexicons."""
    verbs = "|".join(load_lexicon(language).get_pattern("speech") for language in LANGUAGES)
    return re.compile(rf"\s+(?:The \w+|\w+) (?:{verbs})\b")


def _find_speech(text: str) -> list[tuple[int, int]]:
    """Return begin and end of each short passage in quotes, the closing quote included."""
    passages, opened = [], None
    for at, char in enumerate(text):
        if opened is None:
            opened = at if char in _CLOSERS else None
        elif char in _CLOSERS[text[opened]]:
            if at - opened <= LONGEST_SPEECH:
                passages.append((opened, at))
            opened = None
    return passages
