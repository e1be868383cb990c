"""A semantic motion predictor as a folder: config.json with its arguments, and model.safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import draft, write_atomically
from storydiffusion.files.json_file import json_bytes
from storydiffusion.files.model_files import read_config, report_damage
from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_predictor(predictor: SemanticMotionPredictor, settings: Mapping[str, Any], folder: str | Path) -> None:
    """Write both files; `settings` are the predictor's arguments, by name."""
    from safetensors.torch import save_file

    folder = Path(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in predictor.state_dict().items()}
    with draft(folder / WEIGHTS) as file:
        save_file(weights, file, metadata={"format": "pt"})
    write_atomically(folder / CONFIG, json_bytes(dict(settings)))


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Read the arguments in a predictor's folder.

    Raises:
        UserError: no such folder, or a config.json that cannot be read.
    """
    file = Path(folder) / CONFIG
    if not file.exists():
        raise UserError(f"{folder} has no {CONFIG}: give the folder of a predictor")
    return read_config(file, SemanticMotionPredictor)


def load_predictor(folder: str | Path, dtype: torch.dtype = torch.float32) -> SemanticMotionPredictor:
    """Load the predictor in a folder, in eval mode, with exactly the tensors that its config.json requires.

    Raises:
        UserError: a file that is missing or damaged, or weights that do not fit.
    """
    from safetensors.torch import load_file

    folder, settings = Path(folder), read_settings(folder)
    if not (folder / WEIGHTS).exists():
        raise UserError(f"{folder} has no {WEIGHTS}: give the folder of a predictor")
    with report_damage(folder, "predictor"):
        weights = load_file(folder / WEIGHTS)
        with torch.device("meta"):  # compares the sizes before it takes memory for them
            expected = SemanticMotionPredictor(**settings).state_dict()
        for name in sorted(expected.keys() | weights.keys()):
            if name not in weights or name not in expected or weights[name].shape != expected[name].shape:
                raise ValueError(f"{name} differs between {WEIGHTS} and {CONFIG}")
        predictor = SemanticMotionPredictor(**settings)
        predictor.load_state_dict(weights)
    return predictor.to(dtype).eval()
