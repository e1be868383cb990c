"""The recipe of the emotion probe: its scenes, its export, and that a resumed run is bit-equal."""

import json
from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from storydiffusion.commands import load_verb
from storydiffusion.config.command_line import compose_config
from storydiffusion.errors import UserError
from storydiffusion.models.emotion_probe import load_probe
from storydiffusion.story.emotions import EMOTIONS
from storydiffusion.training.build_training import build_training
from storydiffusion.training.miniature import emotion_probe
from storydiffusion.training.miniature.emotion_probe import average_hits, embed_scenes, sample_emotional_scene
from storydiffusion.training.training_run import TrainingRun
from tests.helpers.training_state import state
from tests.helpers.world_model import build_mood_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_mood_model(tmp_path_factory.mktemp("moods") / "model")


def training(model: Path, folder: Path, steps: int, *overrides: str) -> TrainingRun:
    settings = (
        "experiment=storyworld_emotion_probe", "trainer=cpu", f"miniature={model}", f"run_dir={folder}",
        f"recipe.steps={steps}", "recipe.batch_size=8", "recipe.warmup_steps=1", "trainer.checkpoint_minutes=0",
        "trainer.log_every=1", *overrides,
    )  # fmt: skip
    return build_training(compose_config(load_verb("train"), "train", settings))


def test_scenes_show_each_emotion_in_one_or_two_characters():
    scenes = [sample_emotional_scene(1, index) for index in range(800)]
    assert scenes[:5] == [sample_emotional_scene(1, index) for index in range(5)]
    assert all(70 < count < 130 for count in Counter(emotion for _, emotion in scenes).values())
    moods = Counter()
    for scene, emotion in scenes:
        shown = [figure.mood for figure in scene.characters]
        assert emotion in shown
        assert set(shown) <= {emotion, "neutral"}
        moods[tuple(mood == emotion for mood in shown)] += 1
    assert moods.keys() == {(True,), (True, True), (True, False), (False, True)}
    assert all(count > 60 for count in moods.values())


def test_an_exported_probe_is_the_trained_layer_and_names_its_accuracy(model, tmp_path):
    run = training(model, tmp_path / "run", steps=3)
    run.fit()
    figures = run.export(tmp_path / "export")
    probe = load_probe(tmp_path / "export" / "emotion_probe" / "model.safetensors")
    assert (probe.features, probe.normalize) == ("tokens", True)
    assert list(probe.accuracy) == ["one character", "two characters", *EMOTIONS]
    assert all(figures[name] == share for name, share in probe.accuracy.items())
    recorded = json.loads((tmp_path / "export" / "training.json").read_text())["emotion_probe"]
    assert recorded["recipe"]["edition"] == 2
    assert recorded["figures"].items() >= dict(probe.accuracy).items()
    module, scenes = run.module.eval(), [sample_emotional_scene(5, index) for index in range(6)]
    features = embed_scenes(module.frozen[0], scenes).features
    with run.ema.applied(module), torch.no_grad():
        expected = module.probe(module.standardize(features))
    np.testing.assert_allclose(probe.logits(features.numpy()), expected.numpy(), atol=1e-3)


def test_checkpoints_hold_the_probe_alone(model, tmp_path):
    module = training(model, tmp_path, steps=1).module
    assert {name.partition(".")[0] for name in module.state_dict()} == {"standardize", "probe"}


class PowerCut(L.Callback):
    """Ends the training after two steps."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 2:
            raise ConnectionAbortedError


def test_a_resumed_training_is_bit_equal(model, tmp_path):
    whole = training(model, tmp_path / "whole", steps=4)
    whole.fit()
    cut = training(model, tmp_path / "parts", steps=4)
    cut.trainer.callbacks.append(PowerCut())  # type: ignore[attr-defined]
    with pytest.raises(ConnectionAbortedError):
        cut.fit()
    resumed = training(model, tmp_path / "parts", steps=4)
    resumed.fit()
    expected, found = state(whole), state(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_shares_of_hits_are_by_number_of_characters_and_by_emotion():
    scenes = [sample_emotional_scene(1, index) for index in range(100)]
    hits = [len(scene.characters) == 1 for scene, _ in scenes]
    found = average_hits(hits, scenes)
    assert (found["one character"], found["two characters"]) == (1, 0)
    assert found.keys() == {*emotion_probe.GROUPS, *EMOTIONS}


@pytest.mark.parametrize(
    ("override", "said"), [("recipe.edition=1", "shows no moods"), ("recipe.batch_size=1", "give at least 2")]
)
def test_settings_without_sense_are_refused(model, tmp_path, override, said):
    with pytest.raises(UserError, match=said):
        training(model, tmp_path, 1, override)
