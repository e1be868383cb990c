"""StoryDiffusion: consistent stories in images and transition video (arXiv 2405.01434).

The names in `__all__` are imported on first use, so that `import storydiffusion` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.attention.consistent_self_attention import PanelGroup
    from storydiffusion.attention.plugin import consistent_self_attention
    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor
    from storydiffusion.pipelines.story import StoryPipeline
    from storydiffusion.pipelines.transition import TransitionPipeline
    from storydiffusion.story import Story, load_story

    __version__: str

__all__ = [
    "ConsistentSelfAttentionConfig",
    "PanelGroup",
    "SemanticMotionPredictor",
    "Story",
    "StoryPipeline",
    "TransitionPipeline",
    "__version__",
    "consistent_self_attention",
    "load_story",
]

_MODULES = {
    "ConsistentSelfAttentionConfig": "attention.config",
    "PanelGroup": "attention.consistent_self_attention",
    "SemanticMotionPredictor": "models.semantic_motion_predictor",
    "Story": "story",
    "StoryPipeline": "pipelines.story",
    "TransitionPipeline": "pipelines.transition",
    "consistent_self_attention": "attention.plugin",
    "load_story": "story",
}
"""public name → the module that defines it"""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value = version("storydiffusion")
    elif name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
