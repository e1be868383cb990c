"""Find which tokens of a prompt describe which character.

The words are searched in the prompt, so that this works for any prompt: one of a story, where a description has
replaced the name, or one that a user has written.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from storydiffusion.errors import UserError

if TYPE_CHECKING:
    from storydiffusion.attention.consistent_self_attention import PanelGroup

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
    return [token for start, end in spans for token in range(count(text[:start]), count(text[:end]))]


def describe_panels(
    pipe: Any, stories: "Sequence[PanelGroup]", prompts: Sequence[str] | None, characters: Sequence[str]
) -> "list[PanelGroup]":
    """Return the stories of a pipeline's call with the tokens of their characters.

    Args:
        prompts: one for each image; None: the pipeline got embeddings.
        characters: the words of each character.

    Raises:
        UserError: for words that no prompt has, or that the text encoder does not read; for a call without prompts.
    """
    if prompts is None:
        raise UserError(
            "characters are found in prompts, but the pipeline got none: give prompts instead of prompt_embeds, or "
            "PanelGroup(characters=…)."
        )
    tokenizer = getattr(pipe, "tokenizer", None) or pipe.tokenizer_2

    def count(text: str) -> int:
        spelled = pipe.maybe_convert_prompt(text, tokenizer) if hasattr(pipe, "maybe_convert_prompt") else text
        return len(tokenizer(spelled, add_special_tokens=False, truncation=False, verbose=False).input_ids)

    words = dict(zip(characters, characters, strict=True))
    found: list[dict[str, list[int]]] = []
    for prompt in prompts:
        spans = find_words(prompt, words)
        found.append({name: [1 + token for token in find_tokens(prompt, spans[name], count)] for name in spans})
        for name, tokens in found[-1].items():
            if max(tokens) >= tokenizer.model_max_length - 1:
                raise UserError(
                    f"the words '{name}' end beyond the {tokenizer.model_max_length} tokens of the text encoder: "
                    f"shorten the prompt '{prompt}'."
                )
    if missing := [name for name in characters if not any(name in panel for panel in found)]:
        raise UserError(f"no prompt has the words '{missing[0]}' of characters: write them as the prompts do.")
    described, first = [], 0
    for story in stories:
        described.append(replace(story, characters=found[first : first + story.panels]))
        first += story.panels
    return described
