import json
from collections import Counter

import pytest

from storydiffusion.config.infer import STORY_SETS
from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import ATTIRE, words
from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.storyworld.images import HELD_OUT_SEED
from storydiffusion.storyworld.scene import SCENE_LABELS
from storydiffusion.storyworld.scene_captions import MOOD_WORDS, SIDE_WORDS
from storydiffusion.storyworld.scene_stories import HELD_OUT_SEED as SEED_OF_CLIPS
from storydiffusion.storyworld.scene_stories import (
    SETS,
    FrozenSet,
    SceneStory,
    draw_scene_stories,
    get_scene_stories,
    load_scene_stories,
)
from storydiffusion.storyworld.stories import checksum
from storydiffusion.storyworld.words import find_limits

VARIED, PLACES = SETS["varied"], SETS["places"]
FROZEN = {name: load_scene_stories(each.path) for name, each in SETS.items()}
TEN = {
    name: [story for count in each.stories for story in get_scene_stories(count, 10, name)[0]]
    for name, each in SETS.items()
}
every_story = pytest.mark.parametrize(
    ("name", "story"),
    [(name, story) for stories in (FROZEN, TEN) for name in stories for story in stories[name]],
    ids=lambda value: value if isinstance(value, str) else f"story {value.number} of {len(value.panels)} panels",
)
every_set = pytest.mark.parametrize("name", SETS)


@every_set
def test_file_equals_the_draw_of_its_seed(name):
    drawn = draw_scene_stories(SETS[name])
    content = json.loads(SETS[name].path.read_text(encoding="utf-8"))
    assert {"sha256": checksum(drawn), **drawn} == content


@pytest.mark.parametrize(("name", "start"), [("varied", "9da98c8ae079"), ("places", "81854f9422ae")])
def test_frozen_stories_are_those_of_the_claims(name, start):
    assert json.loads(SETS[name].path.read_text(encoding="utf-8"))["sha256"].startswith(start)


def test_the_choices_of_the_configuration_are_the_sets():
    assert tuple(SETS) == STORY_SETS


def test_sets_have_no_story_in_common():
    prompts = [panel.prompt for stories in FROZEN.values() for story in stories for panel in story.panels[:1]]
    assert len({each.seed for each in SETS.values()}) == len(SETS)
    assert len(set(prompts)) > 0.98 * len(prompts)


def test_a_changed_file_is_refused(tmp_path):
    file = tmp_path / "scene_stories.json"
    file.write_text(VARIED.path.read_text(encoding="utf-8").replace("happy", "sad", 1), encoding="utf-8")
    with pytest.raises(UserError, match="was changed"):
        load_scene_stories(file)


def test_held_out_clips_are_of_the_held_out_world():
    assert SEED_OF_CLIPS == HELD_OUT_SEED


@every_set
def test_there_are_stories_of_one_and_of_two_and_every_mood_and_side_occurs(name):
    assert Counter(len(story.looks) for story in FROZEN[name]) == Counter(SETS[name].stories)
    for label in ("mood", "side", "action", "kind"):
        said = {panel.prompted.get(f"{label}_1") for story in FROZEN[name] for panel in story.panels} - {None}
        assert said == set(SCENE_LABELS[f"{label}_1"])


@every_story
def test_panels_state_what_they_prompt(name: str, story: SceneStory):
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
def test_open_and_prompted_attributes_cover_the_characters(name: str, story: SceneStory):
    assert_places([panel.prompted["place"] for panel in story.panels], SETS[name])
    for panel in story.panels:
        for slot, character in enumerate(panel.cast, start=1):
            named = {name.removesuffix(f"_{slot}") for name in panel.prompted if name.endswith(f"_{slot}")}
            attire = named & {*ATTIRE, "hat_color"}
            assert not attire & set(story.open[character])
            present = {name for name in (*ATTIRE, "hat_color") if story.looks[character][name] is not None}
            assert attire | set(story.open[character]) == present
            for name in attire:
                assert panel.prompted[f"{name}_{slot}"] == story.looks[character][name]


def assert_places(places: list[str], frozen: FrozenSet) -> None:
    """Assert that the places of a story are those that its set describes."""
    if frozen.places is None:
        assert_varied(places)
    else:
        assert len(set(places)) == frozen.places
        assert places == [places[panel % frozen.places] for panel in range(len(places))]


def assert_varied(values: list[str], reach: int = 4) -> None:
    """Assert that any `reach` values in a row differ."""
    for first in range(len(values)):
        part = values[first : first + reach]
        assert len(set(part)) == len(part)


@every_story
def test_actions_and_moods_of_a_character_change(name: str, story: SceneStory):
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


def test_ten_panels_are_those_of_the_claims():
    assert get_scene_stories(1, 10)[1].startswith("708e32cc692f")


@every_set
@pytest.mark.parametrize("characters", [1, 2])
def test_longer_stories_show_the_frozen_characters_in_new_scenes(name, characters):
    frozen, checksum_of_frozen = get_scene_stories(characters, 4, name)
    assert frozen == [story for story in FROZEN[name] if len(story.looks) == characters]
    longer, _ = get_scene_stories(characters, 10, name)
    assert checksum_of_frozen == json.loads(SETS[name].path.read_text(encoding="utf-8"))["sha256"]
    for short, long in zip(frozen, longer, strict=True):
        assert (short.number, short.looks, short.open, short.kind) == (long.number, long.looks, long.open, long.kind)
        assert len(long.panels) == 10
        assert not {panel.prompt for panel in short.panels} & {panel.prompt for panel in long.panels}
    assert get_scene_stories(characters, 10, name)[0] == longer
