"""Config → objects: the one place of construction. Heavy libraries are imported inside, once there is work for them."""

from storydiffusion.assembly.benchmark import benchmark
from storydiffusion.assembly.infer import consistent_attention, run_folder, story, tell
from storydiffusion.assembly.train import training
from storydiffusion.assembly.video import why_no_video

__all__ = ["benchmark", "consistent_attention", "run_folder", "story", "tell", "training", "why_no_video"]
