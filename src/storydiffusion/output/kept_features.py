"""Features of a run's images in features/ of its folder, one file for each image, named by the image's checksum.

They save time and are not results: where a file is missing, damaged or of other settings of sharing, which an image
that reads no other outlives, the features are computed again. With the last image of a checksum its file is removed.
"""

import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "features"


def write_features(folder: Path, features: "Mapping[str, Mapping[str, Tensor]]", sharing: Mapping[str, Any]) -> None:
    """Write features of images into a run folder.

    Args:
        features: the SHA-256 of an image → its features, name → tensor.
        sharing: the settings of sharing, plain data.
    """
    from safetensors.torch import save

    for sha256, tensors in features.items():
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            metadata = {"image": sha256, "sharing": json.dumps(sharing, sort_keys=True)}
            write_atomically(folder / FOLDER / _name(sha256), save(contiguous, metadata=metadata))
        except UserError as error:
            print(f"warning: no features are kept: {error}", file=sys.stderr)
            return


def read_features(folder: Path, sha256: str, sharing: Mapping[str, Any]) -> "dict[str, Tensor] | None":
    """Return the features of an image with these settings of sharing; None where the folder has none to be read."""
    from safetensors import SafetensorError, safe_open

    file = folder / FOLDER / _name(sha256)
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            found = stored.metadata() or {}
            if found.get("image") != sha256:
                problem = "is of another image"
            elif found.get("sharing") != json.dumps(sharing, sort_keys=True):
                problem = "is of other settings"
            else:
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # it is not a mapping
    except (SafetensorError, OSError):
        problem = "is damaged"
    print(f"warning: {file} {problem}: computing these features again", file=sys.stderr)
    return None


def remove_features(folder: Path, stay: Collection[str]) -> None:
    """Remove the features of all images but those whose SHA-256 are in `stay`."""
    names = {_name(sha256) for sha256 in stay}
    for file in (folder / FOLDER).glob("*.safetensors"):
        if file.name not in names:
            file.unlink()


def _name(sha256: str) -> str:
    return f"{sha256[:16]}.safetensors"
