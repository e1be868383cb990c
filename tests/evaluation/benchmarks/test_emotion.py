"""The benchmark of emotions: pairs of stories that differ in moods alone, what it refuses, and result.json."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from storydiffusion.config.infer import EMOTION_PROMPTS
from storydiffusion.evaluation.benchmarks.emotion import IDEAS, write_story
from storydiffusion.evaluation.result import Result, load_result
from storydiffusion.story.emotions import EMOTIONS
from storydiffusion.storyworld.scene_captions import MOOD_WORDS
from tests.conftest import run_verb
from tests.helpers.world_model import build_mood_model, build_world_model

MOODS = {word for emotion in EMOTIONS for word in MOOD_WORDS[emotion]}


def strip_moods(prompt: str) -> str:
    """Return a prompt without words for moods; articles count as one."""
    words = [word for word in re.findall(r"[a-z]+", prompt) if word not in MOODS]
    return " ".join("a" if word == "an" else word for word in words)


@pytest.mark.parametrize("number", range(0, 128, 3))
def test_pairs_of_stories_differ_in_the_moods_of_their_prompts_alone(number):
    shown, hidden = (write_story(number, 4, prompts) for prompts in EMOTION_PROMPTS)
    assert (shown.number, shown.emotion, shown.characters) == (hidden.number, hidden.emotion, hidden.characters)
    assert [strip_moods(prompt) for prompt in shown.prompts] == [strip_moods(prompt) for prompt in hidden.prompts]
    named = [set(re.findall("[a-z]+", prompt)) & MOODS for prompt in shown.prompts]
    assert named[0] == set()
    assert any(named[1:])
    assert set.union(*named) <= set(MOOD_WORDS[shown.emotion])
    assert not any(set(re.findall("[a-z]+", prompt)) & MOODS for prompt in hidden.prompts)


def test_64_stories_have_every_emotion_and_every_idea_equally_often():
    stories = [write_story(number, 4, "emotion") for number in range(64)]
    assert [story.emotion for story in stories] == [*EMOTIONS] * 8
    assert len({tuple(story.prompts) for story in stories}) == 64
    assert len(IDEAS) == 8


def load_result_of(folder: str) -> Result:
    return load_result(Path(folder) / "result.json")


@pytest.fixture(scope="module")
def mood_model(tmp_path_factory):
    return build_mood_model(tmp_path_factory.mktemp("moods") / "model")


@pytest.fixture
def measure(infer, mood_model):
    small = (f"model.path={mood_model}", "model.device=cpu", "model.video=null", "steps=1", "benchmark.batch=2")
    return lambda *overrides: infer("benchmark=emotion", "benchmark.stories=2", *small, *overrides)


def test_stories_are_measured_and_the_accuracy_of_the_probe_is_beside_the_scores(measure):
    outcome = measure("run_dir=run")
    assert outcome.code == 0, outcome.err
    found = load_result_of("run")
    assert found.items == ["story 0", "story 1"]
    assert found.groups == ["amusement", "awe"]
    assert {"emo_score", "emo_a", "emo_score_2", "text_image_similarity", "clip_score"} <= found.metrics.keys()
    assert all(0 <= value <= 1 for value in found.values("emo_score").values())
    assert found.metrics["emo_score"].network == "probe on the tokens of miniature"
    assert "accuracy on held-out images is, in %: one character 75.0" in " ".join(found.remarks)
    again = measure("run_dir=run")
    assert "already measured" in again.out


def test_a_batch_measures_as_one_story_at_a_time(measure):
    assert measure("run_dir=both").code == 0
    assert measure("run_dir=single", "benchmark.batch=1").code == 0
    for metric, values in load_result_of("both").metrics.items():
        np.testing.assert_allclose(values.values, load_result_of("single").metrics[metric].values, atol=1e-4)


def test_a_sweep_over_prompts_is_compared(measure, capsys):
    assert measure("benchmark.prompts=emotion,neutral", "run_dir=sweep", "-m").code == 0
    shown, hidden = (load_result_of(f"sweep/benchmark.prompts={one}") for one in EMOTION_PROMPTS)
    assert shown.values("emo_score") != hidden.values("emo_score")
    assert {key for key in shown.settings if shown.settings[key] != hidden.settings[key]} == {"benchmark.prompts"}
    outcome = run_verb("compare", ["sweep=sweep"], capsys)
    assert outcome.code == 0, outcome.err
    assert "Emo-Score" in outcome.out


def test_a_model_without_moods_is_refused_before_anything_is_written(infer, tmp_path):
    model = build_world_model(tmp_path / "model")
    outcome = infer("benchmark=emotion", "run_dir=run", f"model.path={model}")
    assert "was not trained on StoryWorld" in outcome.err
    (model / "storydiffusion.json").write_text('{"kind": "miniature", "edition": 1}')
    outcome = infer("benchmark=emotion", "run_dir=run", f"model.path={model}")
    assert outcome.code == 1
    assert "knows edition 1 of StoryWorld" in outcome.err
    assert "model.path=FOLDER" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_probe_names_the_command_that_trains_one(infer, tmp_path):
    model = build_mood_model(tmp_path / "model")
    (model / "emotion_probe" / "model.safetensors").unlink()
    outcome = infer("benchmark=emotion", "run_dir=run", f"model.path={model}")
    assert outcome.code == 1
    assert f"python train.py experiment=storyworld_emotion_probe miniature={model} export={model}" in outcome.err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("benchmark.panels=2", "benchmark.panels=2"),
        ("benchmark.panels=17", "benchmark.panels=17"),
        ("benchmark.stories=1", "benchmark.stories=1"),
        ("benchmark.prompts=sad", "benchmark.prompts=sad is not one of emotion, neutral"),
        ("baseline=ip_adapter", "baseline=ip_adapter is not part of benchmark=emotion"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(measure, override, said):
    outcome = measure(override)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert said in outcome.err


def test_records_name_the_emotion(measure, tmp_path):
    assert measure("run_dir=run").code == 0
    records = json.loads((tmp_path / "run" / "records.json").read_text())["records"]
    assert [record["emotion"] for record in records] == ["amusement", "awe"]
