"""Former names of settings and verbs are answered with the present ones."""

import pytest

from storydiffusion.config.command_line import CONF
from storydiffusion.config.renamed import KEYS, VALUES
from tests.conftest import run_verb


@pytest.mark.parametrize(
    ("verb", "override", "sentence"),
    [
        ("infer", "consistency.rate=0.3", "consistency.rate is now csa.rate"),
        ("infer", "+consistency.bank=4", "consistency.bank is now csa.anchor_panels"),
        ("infer", "consistency=off", "consistency is now csa"),
        ("infer", "reference=ip_adapter", "reference is now baseline"),
        ("infer", "model.video.end_frames=exact", "model.video.end_frames=exact is now model.video.boundary_frames="),
        ("infer", "model.video.boundary_frames=semantic", "boundary_frames=semantic is now"),
        ("infer", "experiment=ablation_bank", "is now experiment=ablation_anchor_panels"),
        ("train", "recipe=judge", "recipe=judge is now recipe=attribute_classifier"),
        ("train", "recipe.average_decay=0.9", "recipe.average_decay is now recipe.ema_decay"),
        ("train", "objective=paper", "the group objective is part of recipe=transition now"),
        ("measure", "clips=4", "measure is now storydiffusion infer benchmark=stories"),
    ],
)
def test_a_former_name_on_the_command_line(capsys, verb, override, sentence):
    outcome = run_verb(verb, [override], capsys)
    assert outcome.code == 1
    assert len(outcome.sentences) == 1, outcome.err
    assert sentence in outcome.err


@pytest.mark.parametrize(
    ("verb", "content", "sentence"),
    [
        ("infer", "consistency: {rate: 0.2}", "consistency is now csa"),
        ("infer", "model: {video: {end_attention: true}}", "end_attention is now model.video.boundary_attention"),
        ("infer", "defaults: [override /consistency: eq2]", "consistency is now csa"),
        ("train", "defaults: [override /recipe: judge]", "recipe=judge is now recipe=attribute_classifier"),
        ("train", "defaults: [/objective: paper]", "the group objective is part of recipe=transition now"),
        ("train", "recipe: {warmup: 3}", "recipe.warmup is now recipe.warmup_steps"),
    ],
)
def test_a_former_name_in_an_experiment(tmp_path, capsys, verb, content, sentence):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "old.yaml").write_text(f"# @package _global_\n{content}\n")
    outcome = run_verb(verb, [f"--config-dir={tmp_path}", "experiment=old"], capsys)
    assert outcome.code == 1
    assert len(outcome.sentences) == 1, outcome.err
    assert sentence in outcome.err


def test_evaluate_has_a_reference_of_its_own(capsys):
    outcome = run_verb("evaluate", ["reference=x"], capsys)
    assert "is now" not in outcome.err


def test_present_names_exist():
    for values in (VALUES["recipe"], VALUES["experiment"]):
        assert not set(values) & set(values.values())
    for group in ("recipe", "experiment"):
        choices = {file.stem for file in (CONF / group).glob("*.yaml")}
        assert set(VALUES[group].values()) <= choices
        assert not set(VALUES[group]) & choices
    assert not {key for key in KEYS if (CONF / key).is_dir()}
