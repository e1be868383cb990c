"""Condition the denoiser on each panel: on its text, and with the paper's baselines on images of its character.

Shapes: B panels, N tokens of text, C channels of their embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from storydiffusion.errors import UserError
from storydiffusion.pipelines.calls import build_text_arguments


@dataclass(frozen=True)
class CharacterReference:
    """Reference images of a panel's character, and its class word in the prompt ("girl").

    IP-Adapter reads the first image and no word.
    """

    images: tuple[Image.Image, ...]
    word: str = ""


@dataclass(frozen=True)
class Conditions:
    """The conditions of the panels of one call.

    Attributes:
        arguments: of the pipeline's call; tensors and lists have a row for each panel.
        later: (step, tensors): from that step on, 1 or more, these tensors replace those of the pipeline's loop;
            None: nothing changes.
    """

    arguments: dict[str, Any]
    later: tuple[int, dict[str, Tensor]] | None = None

    def at_step_end(self, step: int, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return the tensors for `callback_on_step_end` after `step`, counted from 0."""
        if self.later is None or step + 1 != self.later[0]:
            return tensors
        return {**tensors, **self.later[1]}


class Baseline(Protocol):
    """A method inside a diffusers pipeline that keeps a character consistent by reference images."""

    def conditions(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        references: Sequence[CharacterReference | None],
        steps: int,
        guidance_scale: float,
    ) -> Conditions:
        """Return the conditions of panels with one reference each; None for a panel without a character.

        Args:
            steps, guidance_scale: those of the pipeline's call.
        """
        ...


def text_conditions(
    pipe: Any, prompts: Sequence[str], negative_prompts: Sequence[str], least_windows: int = 1
) -> Conditions:
    """Return conditions by text only; a U-Net's are padded to at least `least_windows` windows of the text encoder."""
    return Conditions(build_text_arguments(pipe, prompts, negative_prompts, least_windows))


def select_panels(conditions: Conditions, story: int, panels: Sequence[int]) -> Conditions:
    """Return the conditions of some panels of a story.

    Args:
        story: number of panels that `conditions` holds, each argument with one row for each.

    Raises:
        UserError: for an argument of other rows, such as those of a baseline.
    """
    arguments = {}
    for name, value in conditions.arguments.items():
        if not isinstance(value, Tensor | list):
            arguments[name] = value
            continue
        if len(value) != story:
            raise UserError(f"the condition {name} has no row for each panel: generate all panels of the story.")
        arguments[name] = value[list(panels)] if isinstance(value, Tensor) else [value[panel] for panel in panels]
    if conditions.later is not None:
        raise UserError("the conditions change between steps: generate all panels of the story.")
    return Conditions(arguments)
