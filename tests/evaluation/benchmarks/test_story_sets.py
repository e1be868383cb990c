"""Stories of the second edition: consistency and alignment of readings whose answer is known, and on a tiny model."""

import json
from pathlib import Path

import pytest

from storydiffusion.attention.character_words import find_words
from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.stories import get_words
from storydiffusion.evaluation.benchmarks.story_sets import get_story_set
from storydiffusion.evaluation.metrics.registry import compute_metrics
from storydiffusion.evaluation.result import load_result
from storydiffusion.storyworld.captions import PLACE_WORDS
from storydiffusion.storyworld.scene import SCENE_LABELS
from storydiffusion.storyworld.scene_stories import SceneStory, get_scene_stories
from storydiffusion.storyworld.truth import LOOKS
from tests.conftest import run_verb
from tests.helpers.world_model import build_world_model

SETS = {(characters, panels): get_story_set(2, characters, panels) for characters in (1, 2) for panels in (4, 10)}
STORIES = [(story_set, story) for story_set in SETS.values() for story in story_set.stories[:12]]
every_story = pytest.mark.parametrize(
    ("story_set", "story"), STORIES, ids=[f"story {story.number} of {len(story.panels)}" for _, story in STORIES]
)


def read_perfectly(story: SceneStory) -> list[dict[str, str]]:
    """Return readings of images that show each character's looks and whatever the prompts state."""
    readings = []
    for panel in story.panels:
        reading = {name: values[0] for name, values in SCENE_LABELS.items()}
        for slot, character in enumerate(panel.cast, start=1):
            looks = {name: value for name, value in story.looks[character].items() if value is not None}
            reading |= {f"{name}_{slot}": value for name, value in looks.items()}
        readings.append({**reading, **panel.prompted})
    return readings


def measure(story_set, story, readings):
    found = compute_metrics("story", story_set.collect(story, readings))
    return {name: value for name, value in found.items() if value is not None and name != "leak"}


@every_story
def test_perfect_images_have_full_marks(story_set, story):
    found = measure(story_set, story, read_perfectly(story))
    assert set(found.values()) == {1}
    assert {"consistency", "alignment", "object", "characters", "mood"} <= set(found)
    assert ("pair_kinds_and_sides" in found) == (len(story.looks) == 2)


def exchange(reading: dict[str, str]) -> dict[str, str]:
    """Return the reading of an image whose characters have changed places."""
    other = str.maketrans("12", "21")
    return {name if name.startswith("side") else name.translate(other): value for name, value in reading.items()}


@every_story
def test_characters_may_change_places_between_images(story_set, story):
    """Sides are wrong then, but who is who is not."""
    swapped = [exchange(one) if one["characters"] == "2" else one for one in read_perfectly(story)]
    found = measure(story_set, story, swapped)
    assert found.pop("side", 0) < 1 or len(story.looks) == 1
    assert [found.pop(name, 0) for name in ("pair_sides", "pair_kinds_and_sides")] == [0, 0]
    assert set(found.values()) == {1}


@every_story
def test_one_change_of_an_open_look_costs_its_pairs_only(story_set, story):
    readings = read_perfectly(story)
    slot, character = 1, story.panels[0].cast[0]
    name = next(each for each in ("shirt", "bottom", "tone", "pattern") if each in story.open[character])
    label = f"{name}_{slot}"
    readings[0][label] = next(value for value in SCENE_LABELS[label] if value != readings[0][label])
    found = measure(story_set, story, readings)
    shown = sum(character in panel.cast for panel in story.panels)
    lost = (shown - 1) / (shown * (shown - 1) / 2)
    assert found.pop("consistency") == pytest.approx(1 - lost / sum(map(len, story.open)))
    assert found.pop("neighbor_consistency") < 1 or character not in story.panels[1].cast
    assert set(found.values()) == {1}


@every_story
def test_a_missing_character_agrees_with_no_image(story_set, story):
    readings = read_perfectly(story)
    readings[0] = {**readings[0], "characters": "0"}
    found = measure(story_set, story, readings)
    assert found["kind"] < 1
    assert found["consistency"] < 1
    empty = measure(story_set, story, [{**one, "characters": "0"} for one in readings])
    assert (empty["consistency"], empty["kind"], empty["place"]) == (0, 0, 1)


def test_a_mood_that_no_word_names_is_not_measured():
    story_set, stories = SETS[1, 4], SETS[1, 4].stories
    story = next(one for one in stories if "neutral" in [panel.prompted["mood_1"] for panel in one.panels])
    wrong = [{**one, "mood_1": "awe"} if one["mood_1"] == "neutral" else one for one in read_perfectly(story)]
    assert measure(story_set, story, wrong)["mood"] == 1


def test_sets_have_the_stories_of_their_edition():
    assert list(SETS[2, 10].stories) == get_scene_stories(2, 10)[0]
    assert len({one.checksum for one in SETS.values()}) == 2, "one file of frozen stories, and one draw of ten panels"
    assert len(get_story_set(1, 1, 4).stories) == 128
    with pytest.raises(UserError, match="characters=2 needs a model of StoryWorld's second edition"):
        get_story_set(1, 2, 4)


def measure_leak(story, readings):
    return compute_metrics("story", SETS[2, 4].collect(story, readings))["leak"]


@pytest.mark.parametrize("story", SETS[2, 4].stories[:12], ids=lambda story: f"story {story.number}")
def test_leak_counts_looks_of_the_other_character(story):
    readings = read_perfectly(story)
    assert measure_leak(story, readings) == 0
    a, b = story.looks
    names = [name for name in LOOKS[1:] if a[name] is not None and b[name] is not None and a[name] != b[name]]
    label = f"{names[0]}_{story.panels[0].cast.index(0) + 1}"
    readings[0] = {**readings[0], label: str(b[names[0]])}
    assert measure_leak(story, readings) == pytest.approx(1 / (4 * len(names)))
    alone = [{**one, "characters": "1"} for one in readings]
    assert measure_leak(story, alone) is None
    assert measure_leak(SETS[1, 4].stories[0], read_perfectly(SETS[1, 4].stories[0])) is None


@pytest.mark.parametrize("edition", [1, 2])
def test_the_words_of_each_character_are_in_the_prompt_and_name_its_kind_alone(edition):
    for story_set in [get_story_set(1, 1, 4)] if edition == 1 else SETS.values():
        for story in story_set.stories:
            for panel, words in zip(story.panels, get_words(story), strict=True):
                found = find_words(panel.prompt, words)
                assert list(words) == [str(character) for character in panel.cast] == list(found)
                kinds = [value for label, value in panel.prompted.items() if label.startswith("kind")]
                for own, text in zip(kinds, words.values(), strict=True):
                    assert own in text
                    assert not any(other in text for other in kinds if other != own)
                    assert not text.endswith((" and", ","))
                    assert PLACE_WORDS[panel.prompted["place"]] not in text


@pytest.fixture(scope="module")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world_model(tmp_path_factory.mktemp("world") / "model", 2)


@pytest.mark.parametrize(
    ("characters", "panels", "regions"),
    [(1, 4, "off"), (2, 4, "off"), (2, 5, "off"), (1, 4, "characters"), (2, 8, "characters+places")],
)
def test_stories_are_generated_and_measured(world_model, tmp_path, capsys, characters, panels, regions):
    steps = 1 if regions == "off" else 2
    small = ["benchmark=stories", f"model.path={world_model}", "model.device=cpu", "model.video=null", f"steps={steps}"]
    small.append(f"csa.regions={regions}")
    small += ["benchmark.stories=2", f"benchmark.characters={characters}", f"benchmark.panels={panels}"]
    outcome = run_verb("infer", [*small, f"run_dir={tmp_path}"], capsys)
    assert outcome.code == 0, outcome.err
    result = load_result(tmp_path / "result.json")
    assert result.settings["benchmark.characters"] == characters
    assert result.settings["benchmark.edition"] == 2
    assert result.settings["csa.regions"] == regions
    assert ("place_agreement" in result.metrics) == (panels > 4)
    assert ("region_iou" in result.metrics) == (characters == 2 and regions != "off")
    assert {"consistency", "alignment", "mood", "character_similarity", "clip_score"} < set(result.metrics)
    assert ("pair_looks" in result.metrics or "pair_kinds" in result.metrics) == (characters == 2)
    records = json.loads((tmp_path / "records.json").read_text())["records"]
    assert [len(one["readings"]) for one in records] == [panels] * 2


def test_two_characters_need_the_second_edition(tmp_path, capsys):
    model = build_world_model(tmp_path / "model", 1)
    small = ["benchmark=stories", f"model.path={model}", "model.device=cpu", "model.video=null"]
    outcome = run_verb("infer", [*small, "benchmark.characters=2", f"run_dir={tmp_path}/run"], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "benchmark.characters=2 needs a model of StoryWorld's second edition" in outcome.err
