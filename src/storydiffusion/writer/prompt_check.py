"""Check free prompts without a tokenizer: English alone, and within the length of CLIP's text encoder."""

import re
import unicodedata

from storydiffusion.errors import UserError

MOST_TOKENS = 65
"""Estimated tokens of a prompt with its style; CLIP has 75, and prompts with rare words take up to 15% more."""
LETTERS_PER_TOKEN = 6
PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")


def check_prompt(prompt: str, where: str) -> None:
    """Raise UserError for a prompt that the text encoder would cut off or not understand."""
    if foreign := find_foreign(prompt):
        raise UserError(f"{where} contains {foreign!r}: write prompts and descriptions in English")
    if (count := estimate_tokens(prompt)) > MOST_TOKENS:
        raise UserError(
            f"{where} takes about {count} tokens with its descriptions: use at most {MOST_TOKENS}, so shorten it"
        )


def find_foreign(text: str) -> str:
    """Return the first word of a text with a letter that is not Latin, "" without one."""
    return next((word for word in text.split() if any(map(_is_foreign, word))), "")[:30]


def estimate_tokens(text: str) -> int:
    """Return about how many tokens CLIP's tokenizer makes of a text, rather too many than too few.

    It has most words of up to six letters, splits longer ones, and reads other letters than a to z as bytes.
    """
    return sum(_estimate_piece(piece) for piece in PIECE.findall(text))


def _estimate_piece(piece: str) -> int:
    if piece.isascii():
        return -(-len(piece) // LETTERS_PER_TOKEN)
    return sum(min(3, len(char.encode())) for char in piece)


def _is_foreign(char: str) -> bool:
    return char.isalpha() and not unicodedata.name(char, "").startswith("LATIN")
