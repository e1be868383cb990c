"""Divide the denoiser's batch into guidance parts: the images of a call once with text, once without, and so on.

A guided pipeline denoises every image several times in one batch (twice with classifier-free guidance, three times in
InstructPix2Pix). Tokens are shared within a part only. The number of images comes from the prompts that the pipeline
encodes in its call; parts show the same latents, which is verified.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from storydiffusion.errors import UserError

ENCODERS = ("encode_prompt", "_encode_prompt")
"""methods by which diffusers' pipelines encode the prompts of a call"""


class ImageCounter:
    """Count the images of a pipeline's call from the arguments of its `encode_prompt`.

    Attributes:
        images: of the latest call that encoded prompts; None before.
        prompts: one for each of these images; None where the pipeline got embeddings.
    """

    def __init__(self) -> None:
        self.images: int | None = None
        self.prompts: list[str] | None = None

    @contextmanager
    def observe(self, pipe: Any) -> Iterator[None]:
        """Count in every call of `pipe` inside the context."""
        own = {name: vars(pipe)[name] for name in ENCODERS if name in vars(pipe)}
        encoders = [name for name in ENCODERS if callable(getattr(pipe, name, None))]
        for name in encoders:
            setattr(pipe, name, self._counted(getattr(pipe, name)))
        try:
            yield
        finally:
            for name in encoders:
                delattr(pipe, name)
            for name, method in own.items():
                setattr(pipe, name, method)

    def _counted(self, encode: Callable) -> Callable:
        signature = inspect.signature(encode)

        @wraps(encode)
        def counted(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            self.images, self.prompts = count_images(arguments), list_prompts(arguments)
            return encode(*args, **kwargs)

        return counted


def count_images(arguments: Mapping[str, Any]) -> int | None:
    """Return the number of images of a call of `encode_prompt`; None where it names no prompt."""
    prompts = arguments.get("prompt_embeds")  # outranks a prompt, which FLUX.2 Klein passes beside it
    if prompts is None:
        prompts = arguments.get("prompt")
    if prompts is None:
        return None
    return (1 if isinstance(prompts, str) else len(prompts)) * (arguments.get("num_images_per_prompt") or 1)


def list_prompts(arguments: Mapping[str, Any]) -> list[str] | None:
    """Return the prompt of each image of a call of `encode_prompt`; None where it names no prompt."""
    prompts = arguments.get("prompt")
    if prompts is None or arguments.get("prompt_embeds") is not None:
        return None
    each = [prompts] if isinstance(prompts, str) else prompts
    return [prompt for prompt in each for _ in range(arguments.get("num_images_per_prompt") or 1)]


def count_parts(batch: int, given: int | None, images: int | None, stated: int | None, panels: int | None) -> int:
    """Return the number of guidance parts in a batch.

    Args:
        batch: images in all parts.
        given: the caller's `parts`, which outranks the rest.
        images: of the pipeline's call; None: unknown.
        stated: parts that the pipeline's own properties state; None: it has none.
        panels: of all stories together; None: one story of the whole part.

    Raises:
        UserError: for a batch that these do not explain.
    """
    if given is not None:
        parts = given
    elif images is not None:
        if batch % images or (stated == 1 and batch != images):
            raise UserError(
                f"the denoiser got a batch of {batch} in a call for {images} image(s), so its guidance parts are "
                "unknown: give one prompt per panel, or the number of parts as consistent_self_attention(parts=…)."
            )
        parts = batch // images
    else:
        parts = stated or max(batch // (panels or batch), 1)
    if batch % parts or (panels is not None and parts * panels != batch):
        raise UserError(
            f"the denoiser got a batch of {batch} for {panels or batch // parts} panels and {parts} guidance part(s): "
            "give stories that sum to the number of images, or parts that divide the batch."
        )
    return parts


def check_parts(latents: Tensor, parts: int, known: bool) -> None:
    """Check that each part of the batch (B, C, h, w) shows the same latents.

    Args:
        known: that the pipeline or the caller states the number of parts; else a single part may not consist of equal
            halves or thirds, as guidance makes them.

    Raises:
        UserError: for parts that differ, as where guidance interleaves its parts; for a single part that may be
            several.
    """
    if not _repeats(latents, parts):
        raise UserError(
            f"the {parts} guidance parts in the denoiser's batch of {len(latents)} show different latents, so this "
            "pipeline orders its batch in a way that is not supported: call it with one prompt at a time, outside of "
            "consistent_self_attention."
        )
    for count in () if known or parts > 1 else (2, 3):
        if len(latents) % count == 0 and _repeats(latents, count):
            raise UserError(
                f"the denoiser's batch of {len(latents)} consists of {count} equal parts, so guidance may have made "
                f"them: give consistent_self_attention(parts={count}), or parts=1 for panels of equal noise."
            )


def _repeats(latents: Tensor, parts: int) -> bool:
    first, *others = latents.chunk(parts)
    return all(torch.equal(first, other) for other in others)
