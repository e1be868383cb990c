"""Image encoders by name: the scheme of a source `NAME://…`, or the `model_type` of a transformers folder."""

from collections.abc import Callable

from storydiffusion.errors import UserError
from storydiffusion.models.image_encoders.base import ImageEncoder
from storydiffusion.models.image_encoders.transformers_folder import read_model_type

Loader = Callable[[str], ImageEncoder]

IMAGE_ENCODERS: dict[str, Loader] = {}


def register_image_encoder(*names: str) -> Callable[[Loader], Loader]:
    """Return a decorator that registers a loader: from what follows `NAME://`, or from a folder, to the encoder.

    Raises:
        UserError: for a name that is taken.
    """
    if taken := sorted(IMAGE_ENCODERS.keys() & set(names)):
        raise UserError(f"image encoder {taken[0]} is already registered: choose another name.")

    def register(loader: Loader) -> Loader:
        IMAGE_ENCODERS.update(dict.fromkeys(names, loader))
        return loader

    return register


def load_image_encoder(source: str) -> ImageEncoder:
    """Load the image encoder of `NAME://…` or of a transformers folder, in float32 on the CPU.

    Raises:
        UserError: for an unknown name or model type, or weights that cannot be loaded.
    """
    name, scheme, rest = source.partition("://")
    if not scheme:
        name, rest = read_model_type(source), source
    if name not in IMAGE_ENCODERS:
        found = f"{source} holds a model of type {name}" if not scheme else f"{source} names the image encoder {name}"
        raise UserError(f"{found}, which is not supported: choose among {', '.join(IMAGE_ENCODERS)}.")
    return IMAGE_ENCODERS[name](rest)
