"""Where the tokens of a prompt are in the embeddings that a pipeline's text encoder returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storydiffusion.attention.character_words import Span, find_tokens
from storydiffusion.errors import UserError


@dataclass(frozen=True)
class PromptTokens:
    """The place of a prompt in a row of embeddings.

    Attributes:
        tokenizer: of the text encoder.
        first: number of the prompt's first token, behind a start token or a template.
        length: most tokens of a row, with start and end.
    """

    tokenizer: Any
    first: int
    length: int

    def find(self, pipe: Any, prompt: str, spans: Mapping[str, Sequence[Span]]) -> dict[str, list[int]]:
        """Return the numbers of the tokens of each character's spans.

        Raises:
            UserError: for words that the text encoder does not read.
        """

        def count(text: str) -> int:
            spelled = pipe.maybe_convert_prompt(text, self.tokenizer) if hasattr(pipe, "maybe_convert_prompt") else text
            return len(self.tokenizer(spelled, add_special_tokens=False, truncation=False, verbose=False).input_ids)

        found = {name: [self.first + n for n in find_tokens(prompt, own, count)] for name, own in spans.items()}
        for name, tokens in found.items():
            if max(tokens) >= self.length - 1:
                raise UserError(
                    f"the words of '{name}' end beyond the {self.length} tokens of the text encoder: shorten the "
                    f"prompt '{prompt}'."
                )
        return found


def count_start_tokens(tokenizer: Any) -> int:
    """Return the number of tokens that a tokenizer puts before a text: CLIP's one, T5's none."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    return tokenizer("a").input_ids.index(plain[0])
