"""What the U-Net is told of each panel: its text, and by the paper's baselines a picture of whom it shows.

Shapes: B panels, N tokens of text, C channels of their embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from storydiffusion.models.prompt_encoding import encode_prompts


@dataclass(frozen=True)
class CharacterReference:
    """Whom a panel shows: one picture or more, and the word of its prompt that stands for them ("girl").

    IP-Adapter reads the first picture and no word.
    """

    pictures: tuple[Image.Image, ...]
    word: str = ""


@dataclass(frozen=True)
class Conditions:
    """Of the panels of one call.

    Attributes:
        arguments: of the pipeline's call, embeddings in place of prompts.
        later: (step, tensors): from that step on, 1 or more, these stand in the pipeline's loop in place of its own;
            None: nothing changes.
    """

    arguments: dict[str, Any]
    later: tuple[int, dict[str, Tensor]] | None = None

    def at_step_end(self, step: int, tensors: dict[str, Any]) -> dict[str, Any]:
        """What the pipeline's `callback_on_step_end` gives back, for the step that ended, counted from 0."""
        if self.later is None or step + 1 != self.later[0]:
            return tensors
        return {**tensors, **self.later[1]}


class Baseline(Protocol):
    """A method that keeps a character by pictures of it, inside a diffusers pipeline."""

    def conditions(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        subjects: Sequence[CharacterReference | None],
        steps: int,
        guidance_scale: float,
    ) -> Conditions:
        """Of one panel each; None where it shows nobody.

        Args:
            steps, guidance_scale: those of the pipeline's call.
        """
        ...


def text_conditions(pipe: Any, prompts: Sequence[str], negative_prompts: Sequence[str]) -> Conditions:
    """By text alone."""
    return Conditions({**encode_prompts(pipe, list(prompts), list(negative_prompts)).as_arguments()})
