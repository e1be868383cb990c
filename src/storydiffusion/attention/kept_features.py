"""Features of finished images, which further images of their story read without their being computed again.

The features of an image are its keys and values in every layer, in every call of the denoiser, in which tokens are
shared. A `FeatureStore` records those of a pipeline's call; another call reads them.

Shape letters: G given images, b images of a call, N tokens, C channels; parts of guidance.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from storydiffusion.errors import UserError

Features = dict[str, Tensor]
"""of one image: CALL/LAYER → its keys and values there, (2, parts, N, C)"""


class FeatureStore:
    """The features that one call of a pipeline reads, and those that it records.

    Args:
        given: number of an image in its group → its features. Such images are not part of the pipeline's batch.
        records: numbers of the images to record.

    Attributes:
        recorded: number of an image → its features, on the CPU; complete after the pipeline's call.
    """

    def __init__(self, given: Mapping[int, Features] | None = None, records: Sequence[int] = ()) -> None:
        self.recorded: dict[int, Features] = {image: {} for image in records}
        self._given = dict(sorted((given or {}).items()))
        self._call = -1

    @property
    def given(self) -> list[int]:
        """The numbers of the given images."""
        return list(self._given)

    def begin_call(self) -> None:
        """Enter the next call of the denoiser."""
        self._call += 1

    def read(self, layer: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the given images in a layer, (parts · G, N, C), parts outermost.

        Raises:
            UserError: for features without this layer and call, such as those of another number of steps.
        """
        name = self._name(layer)
        if any(name not in features for features in self._given.values()):
            raise UserError(f"the kept features lack {layer} in call {self._call}: they are of other settings")
        both = torch.stack([features[name] for features in self._given.values()], dim=2).flatten(1, 2)
        key, value = both.to(like)
        return key, value

    def record(self, layer: str, images: Sequence[int], key: Tensor, value: Tensor) -> None:
        """Record keys and values of a layer, (parts · b, N, C): those of the b `images` that are to be recorded."""
        for place, image in enumerate(images):
            if image in self.recorded:
                rows = slice(place, None, len(images))
                self.recorded[image][self._name(layer)] = torch.stack([key[rows], value[rows]]).detach().cpu()

    def _name(self, layer: str) -> str:
        return f"{self._call}/{layer}"
