"""Part two of the paper: transition video between two images (arXiv 2405.01434, section 3.2).

Names are imported when they are first used, so that what needs one of them does not load the libraries of all.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storydiffusion.video.semantic_motion_predictor import SemanticMotion, SemanticMotionPredictor

__all__ = ["SemanticMotion", "SemanticMotionPredictor"]

HOMES = {
    "SemanticMotion": "semantic_motion_predictor",
    "SemanticMotionPredictor": "semantic_motion_predictor",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
