"""The benchmark `characters`: its metrics on readings whose answer is known, and a run on a tiny model."""

import json

import pytest

from storydiffusion.evaluation.benchmarks.characters import build_story, split_evidence
from storydiffusion.evaluation.benchmarks.story_sets import get_story_set
from storydiffusion.evaluation.metrics.attribute_agreement import consistency_between
from storydiffusion.evaluation.metrics.registry import compute_metrics
from storydiffusion.story import panel_prompts
from storydiffusion.storyworld.truth import ATTRIBUTES
from tests.helpers.world_model import build_world_model


def readings(*shirts: str) -> list[dict[str, str]]:
    return [{"shirt": shirt} for shirt in shirts]


def test_consistency_between_counts_pairs_of_an_image_of_each_story():
    first, second = readings("red", "red", "blue"), readings("red", "green")
    assert consistency_between(first, second, ["shirt"]) == pytest.approx(2 / 6)
    assert consistency_between(second, first, ["shirt"]) == pytest.approx(2 / 6)
    assert consistency_between(first, first, ["shirt"]) == pytest.approx(5 / 9)
    hats = [{"shirt": "red", "hat": "cap"}, {"shirt": "red"}]
    assert consistency_between(hats, readings("red"), ["shirt", "hat"]) == 1
    with pytest.raises(ValueError, match="3 and 2 readings have no pair that counts"):
        consistency_between(first, second, ["hat"])


@pytest.mark.parametrize(("edition", "characters"), [(1, 1), (2, 1), (2, 2)])
def test_the_halves_of_a_story_show_the_same_characters(edition, characters):
    for story in get_story_set(edition, characters, 8).stories:
        first, second = build_story(story, range(4), {}), build_story(story, range(4, 8), {"0": "a.safetensors"})
        assert {each.name for each in first.characters} == {each.name for each in second.characters}
        assert [each.file for each in second.characters if each.name == "0"] == ["a.safetensors"]
        texts = [each.prompt for half in (first, second) for each in panel_prompts(half)]
        assert texts == [panel.prompt.rstrip(".") for panel in story.panels]


def test_a_character_that_changes_between_the_stories_is_seen():
    story_set = get_story_set(1, 1, 8)
    story = story_set.stories[0]
    chosen = {name: values[-1] for name, values in ATTRIBUTES.items()}
    other = chosen | {name: ATTRIBUTES[name][0] for name in story.open}
    for second, expected in ((chosen, 1), (other, 0)):
        read = [
            {**looks, **panel.prompted} for looks, panel in zip([chosen] * 4 + [second] * 4, story.panels, strict=True)
        ]
        metrics = compute_metrics("story", split_evidence(story_set.collect(story, read), 4))
        assert metrics["first_consistency"] == metrics["consistency"] == metrics["alignment"] == 1
        assert metrics["consistency_between"] == expected


def test_it_runs_with_and_without_files(infer, tmp_path):
    model = build_world_model(tmp_path / "model")
    settings = ("benchmark=characters", f"model.path={model}", "steps=2", "benchmark.stories=2", "benchmark.panels=2")
    for method in ("file", "none"):
        outcome = infer(*settings, f"benchmark.method={method}", f"run_dir={method}")
        assert outcome.code == 0, outcome.err
        assert "consistency between the stories" in outcome.out
    results = [json.loads((tmp_path / method / "records.json").read_text()) for method in ("file", "none")]
    first, second = ([record["readings"] for record in result["records"]] for result in results)
    assert [one[:2] for one in first] == [one[:2] for one in second]
    assert len(list((tmp_path / "file" / "characters").glob("*.safetensors"))) == 2
    assert not (tmp_path / "none" / "characters").exists()
    assert "leave out baseline" in infer(*settings, "baseline=ip_adapter_sd15").err
