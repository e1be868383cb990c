"""`storydiffusion convert-emotion-probe`: turn a linear layer's torch file into a probe for `evaluate`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError, first_line
from storydiffusion.story.emotions import EMOTIONS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class ConvertEmotionProbeConfig:
    """conf/convert_emotion_probe.yaml."""

    state: str
    out: str
    normalize: bool
    overwrite: bool

    def __post_init__(self) -> None:
        if Path(self.out).suffix != ".safetensors":
            raise UserError(f"out={self.out} must end in .safetensors: write out=NAME.safetensors")


@command(ConvertEmotionProbeConfig)
def main(config: ConvertEmotionProbeConfig) -> None:
    """Run the verb."""
    from storydiffusion.models.emotion_probe import EmotionProbe

    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise UserError(f"{out} already exists: choose another out, or pass overwrite=true")
    weight, bias = read_linear_layer(Path(config.state))
    EmotionProbe(weight.numpy(), bias.numpy(), "pooled", config.normalize, {}).save(out)
    print(
        f"written: {out}, a probe of embeddings of {weight.shape[1]} channels; evaluate with emotion_probe={out} and "
        "the encoder that it was trained on"
    )


def read_linear_layer(file: Path) -> "tuple[Tensor, Tensor]":
    """Return weight (8, D) and bias (8,) of the only layer in a torch file, in float32.

    Only tensors are unpickled, never code.

    Raises:
        UserError: the file cannot be read, or holds anything but one linear layer to eight emotions.
    """
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise UserError(
            f"state={file} is not a file of tensors ({first_line(error)}). Save layer.state_dict() with torch.save"
        ) from error
    found = dict(list_tensors(content))
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    weights = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == len(EMOTIONS)]
    biases = [name for name, shape in shapes.items() if shape == (len(EMOTIONS),)]
    if (len(weights), len(biases), len(found)) != (1, 1, 2):
        listed = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:6]) or "no tensors"
        raise UserError(
            f"state={file} holds {listed}{', …' if len(shapes) > 6 else ''}: a probe is one linear layer with a weight "
            f"({len(EMOTIONS)}, channels) and a bias ({len(EMOTIONS)},)"
        )
    weight, bias = found[weights[0]].float(), found[biases[0]].float()
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise UserError(f"state={file} holds numbers that are not finite: use another file")
    return weight, bias


def list_tensors(content: Any, prefix: str = "") -> "Iterator[tuple[str, Tensor]]":
    """Yield every tensor of nested state dicts with its dotted name."""
    import torch

    if isinstance(content, torch.Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from list_tensors(value, f"{prefix}{name}.")
