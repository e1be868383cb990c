"""Models are sampled with the boundary frames that they were trained with."""

from dataclasses import replace

import pytest

from storydiffusion.config.model import load_model_config
from storydiffusion.errors import UserError
from storydiffusion.loaders.boundary_frames import (
    RECORD,
    choose_boundary_frames,
    find_untrained,
    read_boundary_frame_prob,
    write_training_record,
)
from storydiffusion.loaders.resolve import get_video_config


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_record_is_read_as_written(tmp_path, share):
    write_training_record(tmp_path, share)
    assert read_boundary_frame_prob(str(tmp_path)) == share


@pytest.mark.parametrize("source", [None, "owner/name@revision", "mm_sd_v15_v2.ckpt"])
def test_modules_without_a_record_saw_no_clean_boundary_frames(source):
    assert read_boundary_frame_prob(source) == 0


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"boundary_frame_prob": true}', '{"boundary_frame_prob": 2}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=RECORD):
        read_boundary_frame_prob(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "chosen"),
    [("miniature", "clamped"), ("sd15_animatediff", "noised"), ("sd15_sparsectrl", "free")],
)
def test_each_model_defaults_to_what_it_can_do(model, chosen):
    assert get_video_config(load_model_config(model)).boundary_frames == chosen


def test_auto_follows_the_motion_modules_and_a_choice_stays(tmp_path):
    config = load_model_config("miniature")
    assert config.video is not None
    of_others = replace(config, video=replace(config.video, motion_adapter=str(tmp_path)))
    assert get_video_config(of_others).boundary_frames == "noised"
    write_training_record(tmp_path, 0.25)
    assert get_video_config(of_others).boundary_frames == "clamped"
    for choice in ("clamped", "noised", "free"):
        assert {choose_boundary_frames(choice, share) for share in (0.0, 1.0)} == {choice}


def test_only_clean_frames_of_a_model_trained_without_are_warned_of():
    warned = {
        (choice, share)
        for choice in ("clamped", "noised", "free")
        for share in (0.0, 0.5)
        if find_untrained(choice, share) is not None
    }
    assert warned == {("clamped", 0.0)}
