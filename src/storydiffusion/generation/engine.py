"""What generates a run: its networks, and the function that watches its steps."""

from collections.abc import Callable
from dataclasses import dataclass

from storydiffusion.generation.networks import Networks

Watch = Callable[[str, int, int], None]
"""watch(stage, step, steps), called after each denoising step of "panels", "takes" or "video"; a KeyboardInterrupt that
it raises stops the run, which the same call then resumes"""


@dataclass(frozen=True)
class Engine:
    """The networks of a run, and who watches it."""

    networks: Networks
    watch: Watch = lambda stage, step, steps: None
