"""Full captions of the frames of clips, from the records in shards."""

import json

import pytest

from storydiffusion.storyworld import clips, scene_clips
from storydiffusion.storyworld.captions import PLACE_WORDS
from storydiffusion.storyworld.clip_source import StoryWorldSource
from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.storyworld.frame_captions import describe_frames
from storydiffusion.storyworld.motions import MOTIONS

SAMPLE = {1: clips.sample_clip, 2: scene_clips.sample_scene_clip}
every_edition = pytest.mark.parametrize("edition", EDITIONS)


@pytest.mark.parametrize("name", EDITIONS[1].labels)
def test_full_captions_of_the_first_edition_name_every_attribute(name):
    from storydiffusion.storyworld.truth import sample_truth

    fixed = {"kind": "girl", "hat": "cap"} | ({"kind": "bear"} if name == "tone" else {})
    values = EDITIONS[1].labels[name]
    captions = {EDITIONS[1].full_caption(sample_truth(1, 0, **fixed | {name: value})) for value in values}
    assert len(captions) == len(values)


@every_edition
@pytest.mark.parametrize("motion", MOTIONS)
def test_first_and_last_frame_are_described_as_the_stills(edition, motion):
    world = EDITIONS[edition]
    for index in range(4):
        clip = SAMPLE[edition](7, index, motion)
        for t, still in ((0, clip.start), (1, clip.end)):
            assert world.full_caption(world.truth_at(clip, t)) == world.full_caption(still)


@every_edition
@pytest.mark.parametrize(
    ("motion", "word"),
    [("jumping", "jumping"), ("waving", "waving"), ("travelling", "running"), ("crossing", "running")],
)
def test_middle_frames_are_described_by_the_motion(edition, motion, word):
    world = EDITIONS[edition]
    for index in range(4):
        text = world.full_caption(world.truth_at(SAMPLE[edition](7, index, motion), 0.5))
        assert f" is {word} " in text


@every_edition
def test_frames_are_captioned_from_the_record_of_a_shard(edition):
    world = EDITIONS[edition]
    for index, source in enumerate(StoryWorldSource(clips=6, seed=5, frames=6, size=64, fps=8, edition=edition)):
        record, clip = json.loads(json.dumps(source.record())), world.sample_clip(5, index)
        expected = [world.full_caption(world.truth_at(clip, t)) for t in (0, 3 / 5, 1)]
        assert describe_frames(record, [0, 3, 5]) == expected


@every_edition
def test_a_travelling_character_changes_its_place_once(edition):
    world, clip = EDITIONS[edition], SAMPLE[edition](7, 0, "travelling")
    texts = [world.full_caption(world.truth_at(clip, t / 20)) for t in range(21)]
    at_start = [PLACE_WORDS[clip.start.place] in text for text in texts]
    assert at_start == sorted(at_start, reverse=True)
    assert at_start[0] != at_start[-1]


@pytest.mark.parametrize(
    "record", [{}, {"clip": 1, "truth": []}, {"clip": {}, "truth": [{"t": 0}]}, {"clip": {"motions": []}}]
)
def test_other_records_are_refused(record):
    with pytest.raises(ValueError, match="record"):
        describe_frames(record, [0])
