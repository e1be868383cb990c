"""Stop generation at the first step whose latents are not finite: the remaining steps could not repair them."""

import torch
from torch import Tensor

from storydiffusion.errors import UserError


def check_latents(latents: Tensor, step: int) -> None:
    """Check the latents after a denoising step, counted from 0.

    Raises:
        UserError: names the step and the likely cause.
    """
    _check(latents, f"the latents after step {step + 1}")


def check_images(images: Tensor) -> None:
    """Check the images that a VAE decoded.

    Raises:
        UserError: names the likely cause.
    """
    _check(images, "the images that the VAE decoded")


def _check(values: Tensor, what: str) -> None:
    if torch.isfinite(values).all():
        return
    if values.dtype == torch.float16:
        raise UserError(
            f"{what} are not finite (NaN or infinity) in float16: choose model.dtype=bfloat16 or float32; if that does "
            "not help, the weights are damaged."
        )
    dtype = str(values.dtype).removeprefix("torch.")
    raise UserError(
        f"{what} are not finite (NaN or infinity) in {dtype}: the weights are probably damaged; download or train them "
        "again, and choose model.dtype=float32 if they were loaded in another."
    )
