import json
from collections import Counter

import pytest

from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import ATTIRE, words
from storydiffusion.storyworld.stories import (
    FILE,
    SEED,
    SEED_OF_OTHER_LENGTHS,
    checksum,
    draw_stories,
    get_stories,
    load_stories,
)
from storydiffusion.storyworld.truth import ATTRIBUTES, WITH_HAIR

CONTENT = json.loads(FILE.read_text(encoding="utf-8"))
STORIES = load_stories()


def test_file_equals_the_draw_of_its_seed():
    drawn = draw_stories(SEED)
    assert {"sha256": checksum(drawn), **drawn} == CONTENT
    assert draw_stories(SEED + 1) != drawn


def test_changed_file_is_refused(tmp_path):
    file = tmp_path / "stories.json"
    file.write_text(FILE.read_text(encoding="utf-8").replace("a ", "the ", 1), encoding="utf-8")
    with pytest.raises(UserError, match="was changed"):
        load_stories(file)
    file.write_text(FILE.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    with pytest.raises(UserError, match="not a readable file"):
        load_stories(file)
    with pytest.raises(UserError, match="not a readable file"):
        load_stories(tmp_path / "missing.json")


def test_twenty_characters_and_a_hundred_activities_occur_evenly():
    characters, activities = CONTENT["characters"], CONTENT["activities"]
    assert len(characters) == 20
    assert len({json.dumps(character["looks"]) for character in characters}) == 20
    assert len({tuple(activity) for activity in activities}) == len(activities) == 100
    kinds = Counter(character["looks"]["kind"] for character in characters)
    assert set(kinds) == set(ATTRIBUTES["kind"])
    assert max(kinds.values()) - min(kinds.values()) <= 1
    counts = Counter(story["character"] for story in CONTENT["stories"])
    assert set(counts.values()) == {6, 7}
    used = Counter(number for story in CONTENT["stories"] for number in story["activities"])
    assert len(used) == 100
    assert max(used.values()) - min(used.values()) <= 2


def test_attire_is_named_in_part_and_every_shirt_colour_once():
    characters = CONTENT["characters"]
    assert {len(character["named"]) for character in characters} == {0, 1, 2, 3}
    shirts = [character["looks"]["shirt"] for character in characters if "shirt" in character["named"]]
    assert sorted(shirts) == sorted(ATTRIBUTES["shirt"])
    with_shirt = [story for story in STORIES if "shirt" in story.panels[0].prompted]
    assert len(with_shirt) * 4 >= 200  # images, so that 90 % is known to ± 2 points


def test_a_story_has_four_different_actions_and_places_and_one_character():
    assert len(STORIES) >= 125
    for number, story in enumerate(STORIES):
        assert story.number == number
        assert len(story.panels) == 4
        for name in ("action", "place"):
            assert len({panel.prompted[name] for panel in story.panels}) == 4
        for name in {*ATTIRE, "kind", "hat_color"} & set(story.panels[0].prompted):
            assert len({panel.prompted[name] for panel in story.panels}) == 1


@pytest.mark.parametrize("panels", [2, 32])
def test_longer_stories_change_action_and_place_in_every_four_panels(panels):
    stories, drawn = get_stories(panels)
    assert len(stories) == len(STORIES)
    assert get_stories(panels) == (stories, drawn)
    assert drawn != CONTENT["sha256"]
    for story in stories:
        assert len(story.panels) == panels
        for first in range(panels):
            some = story.panels[first : first + 4]
            for name in ("action", "place"):
                assert len({panel.prompted[name] for panel in some}) == len(some)
        assert len({panel.prompted["kind"] for panel in story.panels}) == 1


def test_stories_of_four_panels_are_the_frozen_ones():
    assert get_stories(4) == (STORIES, CONTENT["sha256"])
    assert draw_stories(SEED_OF_OTHER_LENGTHS)["characters"] != CONTENT["characters"]


def test_open_and_prompted_attributes_cover_the_character():
    for story in STORIES:
        prompted = set(story.panels[0].prompted)
        assert story.open
        assert not prompted & set(story.open)
        missing = {*ATTIRE, "hat_color"} - prompted - set(story.open)
        bald = {"hair"} if story.panels[0].prompted["kind"] not in WITH_HAIR else set()
        bare = {"hat_color"} if story.panels[0].prompted.get("hat") == "none" else set()
        assert missing == bald | bare


def test_prompts_state_prompted_and_omit_open_attributes():
    signs = {"shirt": {"shirt"}, "hair": {"hair"}, "bottom": {"pants", "skirt"}, "accessory": {"glasses", "bowtie"}}
    signs |= {"pattern": {*ATTRIBUTES["pattern"]}, "hat": {"hat", "cap", "tophat", "beanie", "crown"}}
    for story in STORIES:
        for panel in story.panels:
            said = set(words(panel.prompt))
            assert panel.prompted["kind"] in said
            assert panel.prompted["place"] in said
            assert (panel.prompted["object"] in said) != (panel.prompted["object"] == "none")
            for name, value in panel.prompted.items():
                if name in ATTIRE and value != "none":
                    assert value in said, (name, panel.prompt)
            for name in set(story.open) & set(signs):
                if (name, "pattern" in panel.prompted) != ("shirt", True):  # "a striped shirt" has no colour word
                    assert not signs[name] & said, (name, panel.prompt)
