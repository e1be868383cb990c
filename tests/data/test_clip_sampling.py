"""Clips: the right frames at the right size, transformed alike."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storydiffusion.data.clip_sampling import (
    ClipDraw,
    ClipOptions,
    choose_frames,
    draw_clip,
    prepare_caption,
    prepare_frames,
    resize_and_crop,
)
from storydiffusion.data.video_reader import UnreadableVideoError
from storydiffusion.errors import UserError

NEVER = ClipDraw(start=0.5, flip=0.99, brightness=0.5, caption=0.99)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 100), st.floats(0, 1, exclude_max=True))
def test_frames_are_stride_apart_and_inside(frames, stride, spare, start):
    available = (frames - 1) * stride + 1 + spare
    chosen = choose_frames(available, ClipOptions(frames, stride), ClipDraw(start, 0, 0, 0))
    assert len(chosen) == frames
    assert set(np.diff(chosen)) <= {stride}
    assert 0 <= chosen[0] <= chosen[-1] < available


def test_every_start_is_equally_likely():
    random, options = np.random.default_rng(0), ClipOptions(frames=3, stride=2)
    starts = [choose_frames(8, options, draw_clip(random))[0] for _ in range(4000)]
    counts = np.bincount(starts)
    assert len(counts) == 4
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(4000 * 0.25 * 0.75)


def test_too_few_frames_are_refused():
    with pytest.raises(UnreadableVideoError, match=r"60 frames, but data\.frames=16 with data\.stride=4 spans 61: "):
        choose_frames(60, ClipOptions(16, 4), NEVER)
    assert choose_frames(61, ClipOptions(16, 4), NEVER)[-1] == 60


@settings(deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 8))
def test_the_settings_that_the_refusal_names_work_and_larger_ones_do_not(available, frames, stride):
    options = ClipOptions(frames, stride)
    try:
        choose_frames(available, options, NEVER)
    except UnreadableVideoError as error:
        for choice in str(error).partition(": set ")[2].split(" or "):
            named = {name: int(value) for name, value in re.findall(r"data\.(\w+)=(\d+)", choice)}
            choose_frames(available, replace(options, **named), NEVER)
            name = max(named)
            with pytest.raises(UnreadableVideoError):
                choose_frames(available, replace(options, **{**named, name: named[name] + 1}), NEVER)


def test_draws_depend_on_the_generator_alone():
    assert draw_clip(np.random.default_rng(3)) == draw_clip(np.random.default_rng(3))
    assert draw_clip(np.random.default_rng(3)) != draw_clip(np.random.default_rng(4))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(8, 90), st.integers(8, 90), st.integers(8, 64), st.integers(8, 64))
def test_any_size_is_resized_to_the_requested_one(height, width, to_height, to_width):
    frames = torch.full((2, 3, height, width), 77, dtype=torch.uint8)
    result = resize_and_crop(frames, to_height, to_width)
    assert (result.shape, result.dtype) == ((2, 3, to_height, to_width), torch.uint8)
    assert (result == 77).all()  # no border is made up


def test_crop_is_centred_and_keeps_proportions():
    frames = torch.zeros(1, 3, 32, 96, dtype=torch.uint8)
    frames[..., 32:64] = 200  # a square in the middle of a wide image
    result = resize_and_crop(frames, 16, 16)
    assert result[..., 1:-1].min() > 190
    frames = torch.zeros(1, 3, 96, 32, dtype=torch.uint8)
    frames[..., 40:56, 8:24] = 200
    result = resize_and_crop(frames, 32, 32)[0, 0].float() / 200
    rows, columns = result.sum(0).max(), result.sum(1).max()
    assert rows == columns == 16


def test_shrinking_is_antialiased():
    stripes = (torch.arange(128) % 2 * 200).to(torch.uint8).expand(1, 3, 128, 128)
    assert (resize_and_crop(stripes, 32, 32).float() - 100).abs()[..., 2:-2].max() < 8


def test_frames_of_the_right_size_are_unchanged():
    frames = torch.randint(256, (3, 3, 24, 40), dtype=torch.uint8)
    assert torch.equal(prepare_frames(frames, ClipOptions(height=24, width=40), NEVER), frames)


def test_all_frames_are_transformed_alike():
    frame = torch.randint(256, (1, 3, 24, 24), dtype=torch.uint8)
    options = ClipOptions(height=16, width=16, flip=0.5, brightness=0.5)
    result = prepare_frames(frame.expand(4, -1, -1, -1), options, ClipDraw(0, 0.2, 0.9, 0))
    assert (result == result[:1]).all()
    assert not torch.equal(result, prepare_frames(frame.expand(4, -1, -1, -1), options, ClipDraw(0, 0.6, 0.9, 0)))


def test_flip_and_brightness():
    frames = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    flip = ClipOptions(height=16, width=16, flip=0.3)
    assert torch.equal(prepare_frames(frames, flip, ClipDraw(0, 0.29, 0, 0)), frames.flip(-1))
    assert torch.equal(prepare_frames(frames, flip, ClipDraw(0, 0.31, 0, 0)), frames)
    bright = ClipOptions(height=16, width=16, brightness=0.5)
    lighter = prepare_frames(frames, bright, ClipDraw(0, 0, 0.9, 0))
    assert torch.equal(lighter, (frames.double() * 1.4).round().clamp(0, 255).byte())
    assert prepare_frames(frames, bright, ClipDraw(0, 0, 0.1, 0)).float().mean() < frames.float().mean()


def test_captions_are_dropped_at_their_probability():
    random, options = np.random.default_rng(0), ClipOptions(caption_dropout=0.25)
    dropped = sum(prepare_caption("words", options, draw_clip(random)) == "" for _ in range(2000))
    assert abs(dropped - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)
    assert prepare_caption("words", ClipOptions(caption_dropout=0), draw_clip(random)) == "words"


@pytest.mark.parametrize(
    "wrong",
    [{"frames": 0}, {"stride": 0}, {"height": 4}, {"width": 5000}, {"flip": 1.5}, {"caption_dropout": float("nan")}],
)
def test_invalid_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ClipOptions(**wrong)
