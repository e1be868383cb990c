"""Stories of the second edition: consistency and alignment of readings whose answer is known, and on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from storydiffusion.config import InferConfig, load
from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.run import get_model
from storydiffusion.evaluation.benchmarks.stories import get_descriptions
from storydiffusion.evaluation.benchmarks.story_sets import get_story_set
from storydiffusion.evaluation.benchmarks.subject_masks import record_subjects
from storydiffusion.evaluation.metrics.registry import compute_metrics
from storydiffusion.evaluation.result import load_result
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.loaders.text_to_image import load_story_model
from storydiffusion.storyworld.scene import SCENE_LABELS
from storydiffusion.storyworld.scene_stories import SceneStory, get_scene_stories
from storydiffusion.storyworld.truth import LOOKS
from tests.conftest import ROOT, run_verb
from tests.helpers.descriptions import check_description
from tests.helpers.world_model import build_world_model

SETS = {(characters, panels): get_story_set(2, characters, panels) for characters in (1, 2) for panels in (4, 10)}
PLACES = {characters: get_story_set(2, characters, 4, "places") for characters in (1, 2)}
STORIES = [(each, story) for each in (*SETS.values(), *PLACES.values()) for story in each.stories[:12]]
every_story = pytest.mark.parametrize(
    ("story_set", "story"),
    STORIES,
    ids=[f"story {story.number} of {len(story.panels)}, {each.checksum[:4]}" for each, story in STORIES],
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
    return {name: value for name, value in found.items() if value is not None and not name.startswith("leak")}


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
    with pytest.raises(UserError, match="set=places needs a model of StoryWorld's second edition"):
        get_story_set(1, 1, 4, "places")


@pytest.mark.parametrize("characters", PLACES)
def test_places_come_again_in_a_hundred_stories_of_one_and_of_two_characters(characters):
    stories = PLACES[characters].stories
    assert len(stories) >= 100
    for story in stories:
        evidence = PLACES[characters].collect(story, read_perfectly(story))
        assert evidence["places"][:2] == evidence["places"][2:] != evidence["places"][1:3]
        assert evidence["open_attributes"]


def measure_leaks(story, readings):
    """Return the leak of all looks, that of open ones, and the share of images that they are read from."""
    found = compute_metrics("story", SETS[2, 4].collect(story, readings))
    return tuple(found[name] for name in ("leak", "leak_open", "pairs_shown"))


@pytest.mark.parametrize("story", SETS[2, 4].stories[:12], ids=lambda story: f"story {story.number}")
def test_leak_counts_looks_of_the_other_character(story):
    readings = read_perfectly(story)
    assert measure_leaks(story, readings) == (0, 0, 1)
    a, b = story.looks
    names = [name for name in LOOKS[1:] if a[name] is not None and b[name] is not None and a[name] != b[name]]
    counted = sum(name in own for name in names for own in story.open)
    for name in names:
        label = f"{name}_{story.panels[0].cast.index(0) + 1}"
        changed = [{**readings[0], label: str(b[name])}, *readings[1:]]
        is_open = name in story.open[0]
        expected = (1 / (4 * len(names)), is_open / (2 * counted), 1)
        assert measure_leaks(story, changed) == pytest.approx(expected), name
    assert measure_leaks(story, [{**readings[0], "characters": "1"}, *readings[1:]]) == (0, 0, 0.5)
    alone = [{**one, "characters": "1"} for one in readings]
    assert measure_leaks(story, alone) == (None, None, 0)
    other = SETS[1, 4].stories[0]
    assert measure_leaks(other, read_perfectly(other)) == (None, None, None)


@pytest.mark.parametrize("edition", [1, 2])
def test_the_words_of_a_character_are_its_kind_and_its_named_looks_and_nothing_else(edition):
    for story_set in [get_story_set(1, 1, 4)] if edition == 1 else (*SETS.values(), *PLACES.values()):
        for story in story_set.stories:
            for panel, described in zip(story.panels, get_descriptions(story), strict=True):
                assert list(described) == [str(character) for character in panel.cast]
                check_description(panel.prompt, panel.prompted, list(described.values()))


@pytest.fixture(scope="module")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world_model(tmp_path_factory.mktemp("world") / "model", 2)


@pytest.mark.parametrize(
    ("characters", "panels", "regions", "stories"),
    [
        (1, 4, "off", "varied"),
        (2, 4, "off", "varied"),
        (2, 5, "off", "varied"),
        (1, 4, "characters", "varied"),
        (2, 8, "characters+places", "varied"),
        (2, 4, "characters+places", "places"),
    ],
)
def test_stories_are_generated_and_measured(world_model, tmp_path, capsys, characters, panels, regions, stories):
    steps = 1 if regions == "off" else 2
    small = ["benchmark=stories", f"model.path={world_model}", "model.device=cpu", "model.video=null", f"steps={steps}"]
    small += [f"csa.regions={regions}", f"benchmark.set={stories}"]
    small += ["benchmark.stories=2", f"benchmark.characters={characters}", f"benchmark.panels={panels}"]
    outcome = run_verb("infer", [*small, f"run_dir={tmp_path}"], capsys)
    assert outcome.code == 0, outcome.err
    result = load_result(tmp_path / "result.json")
    assert result.settings["benchmark.characters"] == characters
    assert result.settings["benchmark.edition"] == 2
    assert result.settings["csa.regions"] == regions
    assert ("place_agreement" in result.metrics) == (panels > 4 or stories == "places")
    assert ("region_iou" in result.metrics) == (characters == 2 and regions != "off")
    assert {"consistency", "alignment", "mood", "character_similarity", "clip_score"} < set(result.metrics)
    assert ("pair_looks" in result.metrics or "pair_kinds" in result.metrics) == (characters == 2)
    records = json.loads((tmp_path / "records.json").read_text())["records"]
    assert [len(one["readings"]) for one in records] == [panels] * 2


def test_two_characters_need_the_second_edition(tmp_path, capsys):
    model = build_world_model(tmp_path / "model", 1)
    capsys.readouterr()  # progress of building it
    small = ["benchmark=stories", f"model.path={model}", "model.device=cpu", "model.video=null"]
    outcome = run_verb("infer", [*small, "benchmark.characters=2", f"run_dir={tmp_path}/run"], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "benchmark.characters=2 needs a model of StoryWorld's second edition" in outcome.err


@pytest.mark.parametrize("characters", [1, 2])
def test_masks_are_recorded_without_sharing_for_samplers_that_need_them(world_model, tmp_path, capsys, characters):
    small = ["benchmark=stories", f"model.path={world_model}", "model.device=cpu", "model.video=null", "steps=3"]
    small += ["benchmark.stories=2", f"benchmark.characters={characters}", "csa.rate=0.2", "csa=middle_third"]
    for sampler in ("subject", "background"):
        run = tmp_path / sampler
        outcome = run_verb("infer", [*small, f"csa.sampler={sampler}", f"run_dir={run}"], capsys)
        assert outcome.code == 0, outcome.err
        assert load_result(run / "result.json").settings["csa.sampler"] == sampler


def test_masks_are_those_of_panels_generated_alone_whatever_the_batch(world_model):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("infer", ["benchmark=stories", f"model.path={world_model}", "model.device=cpu", "steps=3"])
    settings = get_model(load(InferConfig, composed))
    model = load_story_model(resolve_model(settings))
    stories = PLACES[2].stories[:2]
    panels = [panel.prompt for story in stories for panel in story.panels]
    words = [each for story in stories for each in get_descriptions(story)]
    whole = record_subjects(model, settings, panels, words, list(range(8)))
    assert whole.shape == (8, 16, 16)
    assert set(whole.unique().tolist()) <= {0, 1}
    parts = [record_subjects(model, settings, panels[k : k + 4], words[k : k + 4], [*range(k, k + 4)]) for k in (0, 4)]
    assert (torch.cat(parts) != whole).float().mean() < 0.01  # up to rounding
    alone = record_subjects(model, settings, panels[2:3], words[2:3], [2])
    assert (alone[0] != whole[2]).float().mean() < 0.01


def test_a_story_has_no_masks_for_a_sampler(tmp_path, capsys):
    outcome = run_verb("infer", ["csa.sampler=subject", f"run_dir={tmp_path}/run"], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "csa.sampler=subject needs masks of characters" in outcome.err
