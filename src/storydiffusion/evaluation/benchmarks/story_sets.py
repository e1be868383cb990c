"""The frozen stories of each edition of StoryWorld, and what the metrics take of their images' readings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.storyworld.scene import split_label
from storydiffusion.storyworld.scene_stories import SceneStory, get_scene_stories
from storydiffusion.storyworld.stories import PANELS, FrozenStory, get_stories

Readings = Sequence[Mapping[str, str]]
"""Label → value of each image of a story, as the attribute classifier returns them"""


@dataclass(frozen=True)
class StorySet:
    """Stories of one edition.

    Attributes:
        checksum: of their content.
        collect: a story and the readings of its images → the evidence of the attribute metrics.
        remark: how they are measured, for the reader of the result.
    """

    stories: Sequence[Any]
    checksum: str
    collect: Callable[[Any, Readings], dict[str, Any]]
    remark: str


CONSISTENCY = (
    "Consistency: share of image pairs that agree, averaged over the attributes that prompts leave open; "
    "neighbor consistency: of neighboring panels only. Similarities are cosines in the miniature's own "
    "image-text encoder, not comparable with those of other encoders. All other metrics: share of images that "
    "show the prompted attributes."
)
OF_CHARACTERS = (
    " Of several characters in an image, each is taken for the prompted one whose kind and named attributes fit best; "
    "consistency is averaged over the open attributes of all, and one that is missing agrees with no other image."
)


def get_story_set(edition: int, characters: int, panels: int, name: str = "varied") -> StorySet:
    """Return the stories of an edition with that many characters and panels; four panels give the frozen ones.

    Args:
        name: of the set, one of `scene_stories.SETS`.

    Raises:
        UserError: two characters or another set in the first edition.
    """
    if edition == 1:
        if name != "varied":
            raise UserError(
                f"benchmark.set={name} needs a model of StoryWorld's second edition, not of its first: set "
                "benchmark.set=varied"
            )
        if characters > 1:
            raise UserError(
                f"benchmark.characters={characters} needs a model of StoryWorld's second edition, not of its first: "
                "set benchmark.characters=1"
            )
        return StorySet(*get_stories(panels), get_attribute_evidence, CONSISTENCY)
    return StorySet(*get_scene_stories(characters, panels, name), get_scene_evidence, CONSISTENCY + OF_CHARACTERS)


def get_attribute_evidence(story: FrozenStory, readings: Readings) -> dict[str, Any]:
    """Return the evidence about a story of the first edition."""
    prompted = [panel.prompted for panel in story.panels]
    fitted = [EDITIONS[1].fit_reading(reading, one) for reading, one in zip(readings, prompted, strict=True)]
    return {"readings": fitted, "prompted": prompted, "open_attributes": story.open}


def get_scene_evidence(story: SceneStory, readings: Readings) -> dict[str, Any]:
    """Return the evidence about a story of the second edition.

    The reading of an image also has the open attributes of the story's characters under names of their own, such as
    "shirt of 0", as a character may be the left one in one image and the right one in another.
    """
    prompted = [panel.prompted for panel in story.panels]
    fitted = [EDITIONS[2].fit_reading(reading, one) for reading, one in zip(readings, prompted, strict=True)]
    looks = [_read_open_looks(story, number, fitted[number]) for number in range(len(fitted))]
    return {
        "readings": [reading | each for reading, each in zip(fitted, looks, strict=True)],
        "prompted": prompted,
        "named": [_without_neutral_moods(one) for one in prompted],
        "open_attributes": [f"{name} of {c}" for c, names in enumerate(story.open) for name in names],
        "open_looks": story.open,
        "casts": [panel.cast for panel in story.panels],
        "places": [one["place"] for one in prompted],
    }


def _read_open_looks(story: SceneStory, panel: int, reading: Mapping[str, str]) -> dict[str, str]:
    """Return the open attributes of the characters in a panel: "shirt of 0" → value."""
    looks = {}
    for slot, character in enumerate(story.panels[panel].cast, start=1):
        is_there = f"kind_{slot}" in reading
        for name in story.open[character]:
            if not is_there:
                looks[f"{name} of {character}"] = f"missing in panel {panel}"  # so that it agrees with no other
            elif f"{name}_{slot}" in reading:
                looks[f"{name} of {character}"] = reading[f"{name}_{slot}"]
    return looks


def _without_neutral_moods(prompted: Mapping[str, str]) -> dict[str, str]:
    """Return what words name: a neutral mood is one that a story's prompts do not mention."""
    return {label: value for label, value in prompted.items() if (split_label(label)[0], value) != ("mood", "neutral")}


def is_frozen(panels: int) -> bool:
    """Return whether stories of that length are the frozen ones."""
    return panels == PANELS
