"""The command of measurement, on a tiny model and a judge of random weights."""

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.config import load, module_command
from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.stories import (
    JUDGED_SIZE,
    MeasureConfig,
    figures_of,
    measure,
    read_stories,
    summarize,
    tell,
)
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.storyworld.images import IMAGE_SIZE
from storydiffusion.storyworld.stories import FrozenStory, load_stories
from storydiffusion.storyworld.truth import ATTRIBUTES
from tests.conftest import Outcome
from tests.helpers.world_model import build_world_model

STORIES = load_stories()
SMALL = ("model.steps=2", "model.device=cpu", "stories=3", "rates=[0,1]", "batch=2")
README = "before\n<!-- measured: consistency -->\n<!-- end -->\nafter\n"


@pytest.fixture(scope="module")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world_model(tmp_path_factory.mktemp("world") / "model")


def config_of(*overrides: str) -> MeasureConfig:
    return load(MeasureConfig, module_command._compose(MeasureConfig, list(overrides)))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Calls `python -m storydiffusion.measure OVERRIDES` in this process."""

    def call(*overrides: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["measure.py", *overrides])
        code = 0
        try:
            module_command.run(MeasureConfig, measure, "the help")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def perfect(story: FrozenStory) -> list[dict[str, str]]:
    """Readings of pictures that show what was told, and one and the same for what was left open."""
    chosen = {name: values[-1] for name, values in ATTRIBUTES.items()}
    return [{**chosen, **panel.prompted} for panel in story.panels]


def records(stories: list[FrozenStory], rng: random.Random | None = None) -> list[dict]:
    def reading(shown: dict[str, str]) -> dict[str, str]:
        return {name: rng.choice(values) for name, values in ATTRIBUTES.items()} if rng else shown

    return [
        {"number": story.number, "seconds": 1.0, "readings": [reading(shown) for shown in perfect(story)]}
        for story in stories
    ]


def test_perfect_pictures_have_full_marks():
    for story in STORIES:
        figures = figures_of(story, perfect(story))
        assert {value for value in figures.values() if value is not None} == {1}, story
        assert (figures["named shirt"] is None) == ("shirt" not in story.panels[0].prompted)


@pytest.mark.parametrize("name", ["kind", "action", "place", "object"])
def test_one_wrong_picture_of_four_costs_a_quarter(name):
    shown = perfect(STORIES[0])
    shown[2][name] = "something else"
    figures = figures_of(STORIES[0], shown)
    assert figures.pop(name) == 0.75
    assert figures.pop("alignment") == (1 if name == "object" else pytest.approx(11 / 12))
    assert {value for value in figures.values() if value is not None} == {1}


def test_what_the_prompts_tell_does_not_count_as_consistency():
    for story in STORIES:
        shown = perfect(story)
        for name in story.panels[0].prompted:
            shown[0][name] = ATTRIBUTES[name][0]
        for name in story.open:
            shown[0][name] = ATTRIBUTES[name][0]
        figures = figures_of(story, shown)
        shares = [1 if name == "hat_color" else 0.5 for name in story.open]  # 3 of 6 pairs; a bare head has no colour
        assert figures["consistency"] == pytest.approx(sum(shares) / len(shares))


def test_random_readings_are_at_chance_and_far_below_perfect_ones():
    summary = summarize({0: records(STORIES, random.Random(0)), 0.5: records(STORIES)}, STORIES)
    off, shared = summary["0"]["figures"], summary["0.5"]["figures"]
    for name in ("kind", "action", "place", "object"):
        chance = 1 / len(ATTRIBUTES[name])
        assert abs(off[name]["mean"] - chance) < 4 * off[name]["standard_error"]
    assert abs(off["consistency"]["mean"] - 0.23) < 0.05
    assert off["consistency"]["difference_to_off"] == {"mean": 0, "standard_error": 0, "count": 128, "p_value": 1}
    difference = shared["consistency"]["difference_to_off"]
    assert difference["mean"] == pytest.approx(1 - off["consistency"]["mean"])
    assert difference["p_value"] < 1e-6
    assert shared["named shirt"]["count"] == sum("shirt" in story.panels[0].prompted for story in STORIES)


def test_a_stopped_measurement_goes_on_at_the_next_batch(tmp_path):
    calls: list[list[int]] = []

    def read(told):
        calls.append([story.number for story in told])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [perfect(story) for story in told]

    file, settings = tmp_path / "out" / "rate-0.json", {"rate": 0.0, "seed": 1}
    with pytest.raises(KeyboardInterrupt):
        read_stories(file, settings, STORIES[:7], read, 2, "rate 0")
    assert len(json.loads(file.read_text())["records"]) == 4
    done = read_stories(file, settings, STORIES[:7], read, 2, "rate 0")
    assert calls == [[0, 1], [2, 3], [4, 5], [4, 5], [6]]
    assert [(one["number"], one["readings"]) for one in done] == [(s.number, perfect(s)) for s in STORIES[:7]]
    assert read_stories(file, settings, STORIES[:5], read, 2, "rate 0") == done[:5]
    assert len(calls) == 5
    with pytest.raises(UserError, match="measured with seed 1, not 2"):
        read_stories(file, {**settings, "seed": 2}, STORIES[:7], read, 2, "rate 0")


def test_the_command_measures_and_puts_the_table_into_the_readme(command, world_model, tmp_path):
    readme, out = tmp_path / "README.md", tmp_path / "out"
    readme.write_text(README)
    arguments = (f"model.path={world_model}", f"out={out}", f"readme={readme}", *SMALL)
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.err
    results, table = json.loads((out / "results.json").read_text()), (out / "table.md").read_text()
    assert list(results["rates"]) == ["0", "1"]
    assert readme.read_text() == f"before\n<!-- measured: consistency -->\n{table.strip()}\n<!-- end -->\nafter\n"
    assert [line.split("|")[1].strip() for line in table.splitlines()[:4]] == ["rate", "---", "off", "1"]
    assert "kind 99.5" in table

    record = json.loads((out / "rate-1.json").read_text())
    assert [len(story["readings"]) for story in record["records"]] == [4, 4, 4]
    for story in record["records"]:
        for reading in story["readings"]:
            assert all(reading[name] in values for name, values in ATTRIBUTES.items())
    stored = {rate: (out / f"rate-{rate}.json").stat().st_mtime_ns for rate in (0, 1)}
    assert command(*arguments).code == 0
    assert stored == {rate: (out / f"rate-{rate}.json").stat().st_mtime_ns for rate in (0, 1)}, "told again"


def test_stories_told_together_are_as_told_alone(world_model):
    from storydiffusion.loaders.text_to_image import load_story_model

    config = config_of(f"model.path={world_model}", *SMALL).model
    model = load_story_model(resolve_model(config))

    def told(stories: list[FrozenStory], rate: float) -> np.ndarray:
        pictures = tell(model, config, stories, ConsistentSelfAttentionConfig(rate=rate), seed=0)
        return np.stack([np.asarray(picture, float) for picture in pictures])

    together = told(STORIES[:2], 0.5)
    alone = np.concatenate([told([story], 0.5) for story in STORIES[:2]])
    assert np.abs(together - alone).max() <= 1
    assert np.abs(together - told(STORIES[:2], 0)).max() > 1, "nothing is shared"


def test_defaults_are_the_models_and_the_judges():
    config = config_of()
    assert config.model.path == "package://miniature"
    assert config.stories == len(STORIES)
    assert JUDGED_SIZE == IMAGE_SIZE


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rate=[0]"], "did you mean 'rates'"),
        (["quick"], "key=value"),
        (["rates=[0,1.5]"], "[0, 1]"),
        (["rates=[0.5]"], "0 (no sharing)"),
        (["rates=fast"], "rates"),
        (["stories=1"], "2 stories or more"),
        (["stories=500"], "at most"),
        (["batch=0"], "batch=0"),
        (["seed=-1"], "seed=-1"),
        (["model.height=256"], "128"),
        (["model.path=/no/such/folder"], "/no/such/folder"),
        (["readme=/no/such/README.md"], "/no/such/README.md"),
        (["model=tiny"], "model"),
    ],
)
def test_bad_input_ends_in_one_sentence(command, world_model, tmp_path, overrides, said):
    path = [] if "model" in overrides[0] else [f"model.path={world_model}"]
    outcome = command(*path, f"out={tmp_path / 'out'}", *overrides)
    assert outcome.code == 1
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_judge_or_markers_is_refused_before_telling(command, world_model, tmp_path):
    bare = tmp_path / "model"
    shutil.copytree(world_model, bare)
    (bare / "attribute_classifier" / "model.safetensors").unlink()
    assert "has no model.safetensors" in command(f"model.path={bare}", f"out={tmp_path / 'out'}", *SMALL).err
    (bare / "training.json").unlink()
    assert "accuracy of a judge" in command(f"model.path={bare}", f"out={tmp_path / 'out'}", *SMALL).err
    (tmp_path / "README.md").write_text("nothing")
    refused = command(
        f"model.path={world_model}", f"readme={tmp_path / 'README.md'}", f"out={tmp_path / 'out'}", *SMALL
    )
    assert "<!-- measured: consistency -->" in refused.err
    assert not (tmp_path / "out").exists()


def test_help_answers_without_work(command):
    assert command("--help").out == "the help\n"
