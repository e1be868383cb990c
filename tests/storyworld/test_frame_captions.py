"""Full captions of the frames of clips, from the records in shards."""

import json
from functools import partial

import pytest

from storydiffusion.storyworld.captions import full_caption, words
from storydiffusion.storyworld.clip_source import StoryWorldSource
from storydiffusion.storyworld.clips import sample_clip
from storydiffusion.storyworld.frame_captions import describe_frame, describe_frames
from storydiffusion.storyworld.motions import MOTIONS
from storydiffusion.storyworld.truth import ATTRIBUTES, sample_truth


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_full_captions_name_every_attribute(name):
    fixed = {"kind": "girl", "hat": "cap"} | ({"kind": "bear"} if name == "tone" else {})
    captions = {full_caption(sample_truth(1, 0, **fixed | {name: value})) for value in ATTRIBUTES[name]}
    assert len(captions) == len(ATTRIBUTES[name])


@pytest.mark.parametrize("motion", MOTIONS)
def test_first_and_last_frame_have_the_captions_of_the_stills(motion):
    for index in range(4):
        clip = sample_clip(7, index, motion)
        assert describe_frame(clip, 0) == full_caption(clip.start)
        assert describe_frame(clip, 1) == full_caption(clip.end)


@pytest.mark.parametrize(
    ("motion", "word"),
    [("jumping", "jumping"), ("waving", "waving"), ("travelling", "running"), ("crossing", "running")],
)
def test_middle_frames_are_captioned_by_the_motion(motion, word):
    for index in range(4):
        assert f" is {word} " in describe_frame(sample_clip(7, index, motion), 0.5)


def test_frames_are_captioned_from_the_record_of_a_shard():
    source = StoryWorldSource(clips=3, seed=5, frames=6, size=64, fps=8)
    for index, clip in enumerate(source):
        record = json.loads(json.dumps(clip.record()))
        truth = sample_clip(5, index)
        assert describe_frames(record, [0, 3, 5]) == [describe_frame(truth, t) for t in (0, 3 / 5, 1)]


def test_a_travelling_character_changes_its_place_once():
    clip = next(clip for clip in map(partial(sample_clip, 7), range(100)) if clip.travels)
    places = [clip.start.place in words(describe_frame(clip, t / 20)) for t in range(21)]
    assert places == sorted(places, reverse=True)
    assert places[0] != places[-1]


@pytest.mark.parametrize("record", [{}, {"clip": 1, "truth": []}, {"clip": {}, "truth": [{"t": 0}]}])
def test_other_records_are_refused(record):
    with pytest.raises(ValueError, match="record"):
        describe_frames(record, [0])
