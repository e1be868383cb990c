"""Part one of the paper: consistent images of one story (arXiv 2405.01434, section 3.1).

This imports torch but not diffusers. It cannot be lazier: the context manager has the name of the module with the
idea, so the function must be bound here after the module has been imported, or the module would hide it.
"""

from storydiffusion.images.consistent_self_attention import ConsistentSelfAttention, PanelGroup
from storydiffusion.images.unet_plugin import StoryState, consistent_self_attention

__all__ = ["ConsistentSelfAttention", "PanelGroup", "StoryState", "consistent_self_attention"]
