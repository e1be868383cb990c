"""Visible faults of the model card's samples, such as a third arm, found by looking at each.

No classifier reports them. A model folder's anatomy.yaml lists them for the weights that were looked at:

    unet: SHA-256 of unet/diffusion_pytorch_model.safetensors
    faults: {12: a third arm, 40: no face}
"""

from collections.abc import Mapping
from pathlib import Path

from storydiffusion.errors import UserError
from storydiffusion.files.bounded_yaml import parse_yaml, read_text

FILE = "anatomy.yaml"
UNET = "unet/diffusion_pytorch_model.safetensors"


def read_anatomy(folder: Path, checksums: Mapping[str, str], samples: int) -> dict[int, str] | None:
    """Return the faults by the sample's number; None where there is no file.

    Args:
        folder: of the model.
        checksums: of its weights.
        samples: their number.

    Raises:
        UserError: a file of another form, of other weights, or of a sample that there is not.
    """
    file = folder / FILE
    if not file.exists():
        return None
    content = parse_yaml(read_text(file, FILE), str(file))
    if not isinstance(content, dict) or set(content) != {"unet", "faults"}:
        raise UserError(f"{file} does not have exactly the keys unet and faults: write both")
    faults = content["faults"] or {}
    if not isinstance(faults, dict) or not all(isinstance(text, str) for text in faults.values()):
        raise UserError(f"{file} has faults={faults!r}: write {{NUMBER: FAULT}}")
    for number in faults:
        if type(number) is not int or not 0 <= number < samples:
            raise UserError(f"{file} names sample {number!r}: choose a number from 0 to {samples - 1}")
    if content["unet"] != checksums.get(UNET):
        raise UserError(
            f"{file} is about the weights {str(content['unet'])[:12]}…, but {UNET} is {checksums.get(UNET, '')[:12]}…: "
            "look at the samples of these weights, or remove it"
        )
    return dict(sorted(faults.items()))


def write_anatomy(faults: Mapping[int, str] | None, samples: int) -> str:
    """Return the card's section; "" where the samples are not reviewed."""
    from storydiffusion.evaluation.tables import escape_markdown

    if faults is None:
        return ""
    listed = "".join(f"- {number}: {escape_markdown(text)}\n" for number, text in faults.items())
    verb = "shows" if len(faults) == 1 else "show"
    return (
        f"### Anatomy\n\nOf these {samples} samples, looked at one by one, {len(faults)} {verb} a visible fault of "
        f"drawing.\n\n{listed}{listed and chr(10)}"
    )
