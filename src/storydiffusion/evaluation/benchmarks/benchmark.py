"""What every benchmark provides to `run.py`, and what they share: the attribute classifier that reads the images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import ModelConfig
from storydiffusion.errors import UserError
from storydiffusion.evaluation.networks import MINIATURE
from storydiffusion.files.json_file import read_object
from storydiffusion.loaders.checksums import compute_checksums
from storydiffusion.loaders.resolve import ResolvedModel, read_edition, read_json
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.storyworld.scene import SCENE_LABELS
from storydiffusion.storyworld.truth import ATTRIBUTES

if TYPE_CHECKING:
    from storydiffusion.storyworld.attribute_classifier import AttributeClassifier
    from storydiffusion.storyworld.edition import Edition

LABELS = {*ATTRIBUTES, *SCENE_LABELS}
"""Of all editions of StoryWorld"""
READ_SIZE = 128
"""Height and width of the images that the attribute classifier reads, in pixels"""


@dataclass(frozen=True)
class Benchmark:
    """A loaded benchmark.

    Attributes:
        unit: what one item is, such as `story`.
        items: what is generated and measured.
        names: one per item, unique; items of the same name are paired between results.
        measure: items → one record each, plain data with the key `metrics`: name → value.
        networks: the kind of network, as the registry of metrics names it → the name of the network used.
        remarks: sentences for the reader of the result.
        groups: one per item; empty where items are not grouped.
    """

    unit: str
    items: Sequence[Any]
    names: list[str]
    measure: Callable[[Sequence[Any]], list[dict[str, Any]]]
    networks: Mapping[str, str]
    remarks: list[str]
    groups: list[str] = field(default_factory=list)


def check_readable(model: ModelConfig, seed: int) -> None:
    """Raise UserError for a seed that is out of range, or an image size that the attribute classifier cannot read."""
    if not 0 <= seed < 2**31:
        raise UserError(f"seed={seed} is outside 0…{2**31 - 1}. Choose a seed in this range")
    if (model.height, model.width) != (READ_SIZE, READ_SIZE):
        raise UserError(
            f"the attribute classifier reads images of {READ_SIZE} × {READ_SIZE}. Leave height and width at that"
        )


def get_checksums(model: ResolvedModel) -> dict[str, str]:
    """Return the SHA-256 of the model's weight files and of its attribute classifier's."""
    classifier = model.folder / "attribute_classifier" / "model.safetensors"
    return model.checksums | compute_checksums({"attribute_classifier": classifier})


def read_accuracy(folder: Path) -> dict[str, float]:
    """Return the accuracy of each attribute that the model's attribute classifier reached on held-out renders.

    Raises:
        UserError: the model has no attribute classifier, or no record of its accuracy.
    """
    from storydiffusion.training.record import RECORD

    try:
        accuracy = read_object(folder / RECORD)["attribute_classifier"]["figures"]
        if not isinstance(accuracy, dict) or not all(isinstance(share, int | float) for share in accuracy.values()):
            raise ValueError("no accuracies")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / RECORD} has no accuracy of an attribute classifier. Train one and export it into this folder"
        ) from error
    for name in ("config.json", "model.safetensors"):
        if not (folder / "attribute_classifier" / name).exists():
            raise UserError(
                f"{folder / 'attribute_classifier'} has no {name}. Train an attribute classifier and export it there"
            )
    return accuracy


def find_edition(folder: Path) -> "Edition":
    """Return the edition of StoryWorld that a model draws and its attribute classifier reads.

    Raises:
        UserError: the model draws another edition, as its storydiffusion.json says.
    """
    from storydiffusion.storyworld.edition import get_edition

    read = read_json(folder / "attribute_classifier" / "config.json").get("edition", 1)
    drawn = read_edition(folder)
    if drawn not in (None, read):
        raise UserError(
            f"{folder} draws StoryWorld's edition {drawn}, but its attribute classifier reads edition {read!r}. "
            f"Train one with recipe.edition={drawn} and export it there"
        )
    return get_edition(read)


def find_encoder(folder: Path) -> str:
    """Return the source of the image-text encoder for a model's prompts: the package's own, or that of the folder.

    The package's encoder serves all models of its edition, so that their similarities can be compared.
    """
    is_own = find_edition(folder).number != find_edition(find_model_folder("package://miniature", None)).number
    return str(folder / "image_encoder") if is_own else MINIATURE


def describe_accuracy(accuracy: Mapping[str, float]) -> str:
    """Return the remark that every reading needs; of the record, only accuracies of labels are listed."""
    listed = ", ".join(f"{name} {100 * share:.1f}" for name, share in accuracy.items() if name in LABELS)
    return (
        "Attributes are read by the model's attribute classifier, whose accuracy on held-out renders is, in %: "
        f"{listed}."
    )


def read_images(classifier: "AttributeClassifier", images: Sequence[Any]) -> list[dict[str, str]]:
    """Return what the classifier reads in each PIL image: label → value."""
    import numpy as np

    from storydiffusion.storyworld.images import to_tensor

    pixels = to_tensor(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return to_rows(classifier.read(pixels))


def to_rows(columns: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Turn attribute → value of every image into one reading per image."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
