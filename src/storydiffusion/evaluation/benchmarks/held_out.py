"""What the benchmark `transitions` generates: held-out clips of either edition of StoryWorld, or scene changes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.benchmark import READ_SIZE

if TYPE_CHECKING:
    import numpy as np

    from storydiffusion.storyworld.edition import Edition

SCENE_CHANGE = "scene_change"
"""benchmark.motion of transitions between two unrelated images, as between the panels of a story"""


@dataclass(frozen=True)
class SceneChange:
    """Two unrelated images: nothing is true between them."""

    start: Any
    end: Any
    motion: str = SCENE_CHANGE


@dataclass(frozen=True)
class HeldOutClip:
    """One item: number `index` of the held-out world, a clip of `world` or a `SceneChange`."""

    world: "Edition"
    index: int
    clip: Any

    @property
    def has_truth(self) -> bool:
        """Whether the frames between the boundary frames are known."""
        return not isinstance(self.clip, SceneChange)

    @property
    def group(self) -> str:
        """The motion; two characters have a motion each."""
        return self.clip.motion

    @property
    def prompt(self) -> str:
        """A caption of the clip, or that of the image it leads to."""
        return (
            self.world.caption_clip(self.clip, self.index)
            if self.has_truth
            else self.world.caption(self.clip.end, self.index)
        )

    def render(self, frames: int) -> "np.ndarray":
        """Return the true frames, uint8 (F, H, W, 3); without truth only the two boundary frames."""
        import numpy as np

        if self.has_truth:
            return self.world.render_clip(self.clip, frames, READ_SIZE)
        return np.stack([self.world.render(still, READ_SIZE) for still in (self.clip.start, self.clip.end)])

    def get_labels(self, t: float) -> dict[str, str]:
        """Return the attributes of the frame at `t` in [0, 1], without what it lacks; 0 or 1 without truth."""
        still = self.world.truth_at(self.clip, t) if self.has_truth else (self.clip.end if t else self.clip.start)
        return {name: value for name, value in self.world.get_labels(still).items() if value is not None}


def sample_held_out(world: "Edition", motion: str | None, count: int) -> list[HeldOutClip]:
    """Return the first `count` held-out clips: of any motion, of one, or scene changes.

    Raises:
        UserError: an unknown motion.
    """
    from storydiffusion.storyworld.images import HELD_OUT_SEED

    def sample(index: int) -> Any:
        if motion == SCENE_CHANGE:
            return SceneChange(*(world.sample(HELD_OUT_SEED, 2 * index + end) for end in (0, 1)))
        return world.sample_clip(HELD_OUT_SEED, index, motion)

    try:
        return [HeldOutClip(world, index, sample(index)) for index in range(count)]
    except UserError as error:
        raise UserError(f"benchmark.{error}, or {SCENE_CHANGE}") from error
