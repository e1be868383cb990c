import json
from collections import Counter

import pytest

from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import ATTIRE, words
from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.storyworld.images import HELD_OUT_SEED
from storydiffusion.storyworld.scene import SCENE_LABELS
from storydiffusion.storyworld.scene_captions import MOOD_WORDS, SIDE_WORDS
from storydiffusion.storyworld.scene_stories import (
    FILE,
    SEED,
    STORIES,
    SceneStory,
    draw_scene_stories,
    get_scene_stories,
    load_scene_stories,
)
from storydiffusion.storyworld.scene_stories import HELD_OUT_SEED as SEED_OF_CLIPS
from storydiffusion.storyworld.stories import checksum
from storydiffusion.storyworld.words import find_limits

FROZEN = load_scene_stories()
TEN = [story for count in STORIES for story in get_scene_stories(count, 10)[0]]
every_story = pytest.mark.parametrize(
    "story", [*FROZEN, *TEN], ids=lambda story: f"story {story.number} of {len(story.panels)} panels"
)


def test_file_equals_the_draw_of_its_seed():
    drawn = draw_scene_stories(SEED)
    content = json.loads(FILE.read_text(encoding="utf-8"))
    assert {"sha256": checksum(drawn), **drawn} == content


def test_a_changed_file_is_refused(tmp_path):
    file = tmp_path / "scene_stories.json"
    file.write_text(FILE.read_text(encoding="utf-8").replace("happy", "sad", 1), encoding="utf-8")
    with pytest.raises(UserError, match="was changed"):
        load_scene_stories(file)


def test_held_out_clips_are_of_the_held_out_world():
    assert SEED_OF_CLIPS == HELD_OUT_SEED


def test_there_are_stories_of_one_and_of_two_and_every_mood_and_side_occurs():
    assert Counter(len(story.looks) for story in FROZEN) == Counter(STORIES)
    for name in ("mood", "side", "action", "kind"):
        said = {panel.prompted.get(f"{name}_1") for story in FROZEN for panel in story.panels} - {None}
        assert said == set(SCENE_LABELS[f"{name}_1"])


@every_story
def test_panels_state_what_they_prompt(story: SceneStory):
    for panel in story.panels:
        said, prompted = set(words(panel.prompt)), panel.prompted
        assert all(value in SCENE_LABELS[name] for name, value in prompted.items())
        assert prompted["characters"] == str(len(panel.cast))
        assert find_limits(panel.prompt, EDITIONS[2]) == []
        assert said <= set(EDITIONS[2].vocabulary())
        for slot in range(1, len(panel.cast) + 1):
            assert prompted[f"kind_{slot}"] in said
            mood = prompted[f"mood_{slot}"]
            assert mood == "neutral" or said & set(MOOD_WORDS[mood])
            if f"side_{slot}" in prompted:
                assert SIDE_WORDS[prompted[f"side_{slot}"]] in panel.prompt


@every_story
def test_open_and_prompted_attributes_cover_the_characters(story: SceneStory):
    assert_varied([panel.prompted["place"] for panel in story.panels])
    for panel in story.panels:
        for slot, character in enumerate(panel.cast, start=1):
            named = {name.removesuffix(f"_{slot}") for name in panel.prompted if name.endswith(f"_{slot}")}
            attire = named & {*ATTIRE, "hat_color"}
            assert not attire & set(story.open[character])
            present = {name for name in (*ATTIRE, "hat_color") if story.looks[character][name] is not None}
            assert attire | set(story.open[character]) == present
            for name in attire:
                assert panel.prompted[f"{name}_{slot}"] == story.looks[character][name]


def assert_varied(values: list[str], reach: int = 4) -> None:
    """Assert that any `reach` values in a row differ."""
    for first in range(len(values)):
        part = values[first : first + reach]
        assert len(set(part)) == len(part)


@every_story
def test_actions_and_moods_of_a_character_change(story: SceneStory):
    for character in range(len(story.looks)):
        seen = [
            (panel.prompted[f"action_{slot}"], panel.prompted[f"mood_{slot}"])
            for panel in story.panels
            for slot, who in enumerate(panel.cast, start=1)
            if who == character
        ]
        reach = 4 if len(story.looks) == 1 else 3  # of four panels, each of two characters is in three
        assert_varied([action for action, _ in seen], reach)
        assert_varied([mood for _, mood in seen], reach)


@pytest.mark.parametrize("characters", STORIES)
def test_longer_stories_show_the_frozen_characters_in_new_scenes(characters):
    frozen, checksum_of_frozen = get_scene_stories(characters, 4)
    assert frozen == [story for story in FROZEN if len(story.looks) == characters]
    longer, checksum_of_longer = get_scene_stories(characters, 10)
    assert checksum_of_longer.startswith("708e32cc692f"), "the stories of ten panels are not those of the claims"
    assert checksum_of_frozen == json.loads(FILE.read_text(encoding="utf-8"))["sha256"]
    for short, long in zip(frozen, longer, strict=True):
        assert (short.number, short.looks, short.open, short.kind) == (long.number, long.looks, long.open, long.kind)
        assert len(long.panels) == 10
        assert not {panel.prompt for panel in short.panels} & {panel.prompt for panel in long.panels}
    assert get_scene_stories(characters, 10)[0] == longer
