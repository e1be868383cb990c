"""Find the characters of a pipeline's call in its prompts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from storydiffusion.attention.character_words import find_words
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.prompt_tokens import PromptTokens
from storydiffusion.errors import UserError


def describe_panels(
    pipe: Any,
    where: PromptTokens,
    stories: Sequence[PanelGroup],
    prompts: Sequence[str] | None,
    characters: Sequence[str],
) -> list[PanelGroup]:
    """Return the stories of a pipeline's call with the tokens of their characters.

    Args:
        where: the place of a prompt in its embeddings.
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
    words = dict(zip(characters, characters, strict=True))
    found = [where.find(pipe, prompt, find_words(prompt, words)) for prompt in prompts]
    if missing := [name for name in characters if not any(name in panel for panel in found)]:
        raise UserError(f"no prompt has the words '{missing[0]}' of characters: write them as the prompts do.")
    described, first = [], 0
    for story in stories:
        described.append(replace(story, characters=found[first : first + story.panels]))
        first += story.panels
    return described
