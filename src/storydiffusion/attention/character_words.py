"""Find which tokens of a prompt describe which character.

The words are searched in the prompt, so that this works for any prompt: one of a story, where a description has
replaced the name, or one that a user has written.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from storydiffusion.errors import UserError

Span = tuple[int, int]
"""start and end of words in a text"""


def find_words(text: str, characters: Mapping[str, str]) -> dict[str, list[Span]]:
    """Find the words of each character in a text, in any case.

    Longer words are found first, and no two spans overlap: "a girl" is not found in "a girl with a hat".

    Args:
        characters: name → words.

    Returns:
        name → spans, for the characters whose words the text has.

    Raises:
        UserError: for two characters of the same words.
    """
    owners: dict[str, str] = {}
    for name, words in characters.items():
        if (other := owners.setdefault(words.casefold(), name)) != name:
            raise UserError(
                f"{other} and {name} have the same words '{words}', so no region is only one's: change one."
            )
    found: dict[str, list[Span]] = {}
    taken: list[Span] = []
    for name, words in sorted(characters.items(), key=lambda item: -len(item[1])):
        for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE):
            if all(match.end() <= start or end <= match.start() for start, end in taken):
                taken.append(match.span())
                found.setdefault(name, []).append(match.span())
    return {name: found[name] for name in characters if name in found}


def find_tokens(text: str, spans: Sequence[Span], count: Callable[[str], int]) -> list[int]:
    """Return the numbers of the tokens of these spans, from 0.

    Args:
        count: the number of tokens of a text, without start and end.
    """
    # without the space before a word, which may be a token of its own or the beginning of the word's
    return [token for start, end in spans for token in range(count(text[:start].rstrip()), count(text[:end]))]
