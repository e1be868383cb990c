import hashlib
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import THIRD_PERSON, words
from storydiffusion.storyworld.motions import MOTIONS
from storydiffusion.storyworld.scene import FIGURE_ATTRIBUTES, Scene
from storydiffusion.storyworld.scene_captions import scene_vocabulary
from storydiffusion.storyworld.scene_clips import (
    SceneClip,
    caption_scene_clip,
    follow_scene_clip,
    render_scene_clip,
    sample_scene_clip,
    scene_at,
)
from storydiffusion.storyworld.scene_renderer import render_scene
from storydiffusion.storyworld.truth import LOOKS

SEED = 31
CLIPS = "65cdbdf5c11c871b30afc10f06faeecdcb6b63374caac27e205636e56feb432f"
every_motion = pytest.mark.parametrize("motion", MOTIONS)


def duets(count: int) -> list[SceneClip]:
    """The first clips of two characters."""
    clips = (sample_scene_clip(SEED, index) for index in range(1000))
    return [clip for clip in clips if len(clip.motions) == 2][:count]


def solos(motion: str, count: int) -> list[SceneClip]:
    return [sample_scene_clip(SEED, index, motion) for index in range(count)]


def test_clips_are_the_same_on_every_machine():
    records = [sample_scene_clip(7, index).to_dict() for index in range(200)]
    assert hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest() == CLIPS


def test_every_motion_and_mood_occurs_and_a_third_of_the_clips_has_two_characters():
    clips = [sample_scene_clip(SEED, index) for index in range(600)]
    assert {motion for clip in clips for motion in clip.motions} == set(MOTIONS)
    moods = {figure.mood for clip in clips for figure in clip.start.characters}
    assert moods == set(FIGURE_ATTRIBUTES["mood"])
    assert 150 < sum(len(clip.motions) == 2 for clip in clips) < 250


@every_motion
def test_clips_start_and_end_in_stills_of_the_same_characters_and_moods(motion):
    for clip in [*solos(motion, 4), *duets(2)]:
        first, _, last = render_scene_clip(clip, 3, 64)
        assert np.array_equal(first, render_scene(clip.start, 64))
        assert np.array_equal(last, render_scene(clip.end, 64))
        for start, end in zip(clip.start.characters, clip.end.characters, strict=True):
            assert all(getattr(start, name) == getattr(end, name) for name in (*LOOKS, "mood"))


def joints(clip: SceneClip, t: float) -> list[np.ndarray]:
    """Return the limbs of every character, and its head."""
    tracks = []
    for stance in clip.stances(t):
        body, place = stance.pose, np.array([stance.x, -stance.pose.hip])
        tracks += [
            np.array(body.arms, float) + place,
            np.array(body.legs, float) + place,
            np.array([*body.head, *place]),
        ]
    return tracks


def step(a: np.ndarray, b: np.ndarray) -> float:
    """The order of two limbs is that of drawing, so it may change."""
    return min(np.abs(b - a).max(), np.abs(b[::-1] - a).max() if b.ndim == 3 else np.inf)


@every_motion
def test_limbs_never_jump(motion):
    steps = 400
    for clip in solos(motion, 9):
        track = [joints(clip, i / steps) for i in range(steps + 1)]
        assert max(step(a, b) for before, after in pairwise(track) for a, b in zip(before, after, strict=True)) < 2.5


def test_limbs_of_two_never_jump():
    for clip in duets(12):
        track = [joints(clip, i / 400) for i in range(401)]
        assert max(step(a, b) for before, after in pairwise(track) for a, b in zip(before, after, strict=True)) < 2.5


@every_motion
def test_characters_stay_whole_in_the_frame(motion):
    for clip in [*solos(motion, 6), *duets(6)]:
        for frame in follow_scene_clip(clip, 5, 128):
            for character in frame:
                assert min(character.box) >= 0, (clip, frame)
                assert character.box[2] - character.box[0] < 100


def test_each_of_two_characters_moves_where_it_stands():
    for clip in duets(20):
        still = [figure.x for figure in clip.start.characters]
        assert all([stance.x for stance in clip.stances(t)] == still for t in (0.0, 0.3, 0.7, 1.0))
        frames = render_scene_clip(clip, 5, 64).astype(int)
        boxes = [frame[0].box for frame in follow_scene_clip(clip, 5, 64)]
        left = max(box[2] for box in boxes)
        assert np.abs(np.diff(frames[:, :, :left], axis=0)).max() > 60
        assert np.abs(np.diff(frames[:, :, left:], axis=0)).max() > 60


def test_moods_are_kept_in_mid_motion():
    for index, mood in enumerate(("sadness", "anger")):
        clip = solos("crossing", 1)[0]
        start, end = (
            replace(scene, characters=(replace(scene.characters[0], mood=mood),)) for scene in (clip.start, clip.end)
        )
        frames = render_scene_clip(replace(clip, start=start, end=end), 3, 128)
        if index == 0:
            sad = frames
    assert (np.abs(sad[1].astype(int) - frames[1]).max(axis=2) > 60).sum() > 60


def test_captions_use_known_words_and_name_each_motion():
    known = set(scene_vocabulary())
    for index in range(300):
        clip = sample_scene_clip(SEED, index)
        text = caption_scene_clip(clip, index)
        assert set(words(text)) <= known
        assert all(figure.kind in words(text) for figure in clip.start.characters)
    for clip in solos("waving", 5):
        assert {"waving", *THIRD_PERSON["waving"].split()} & set(words(caption_scene_clip(clip, 1)))


@every_motion
def test_the_scene_of_a_frame_is_where_the_characters_are(motion):
    for clip in solos(motion, 3):
        assert scene_at(clip, 0.0) == clip.start
        assert scene_at(clip, 1.0) == clip.end
        middle = scene_at(clip, 0.45)
        assert [figure.x for figure in middle.characters] == [stance.x for stance in clip.stances(0.45)]
        assert isinstance(middle, Scene)


def test_json_round_trip():
    for index in range(40):
        clip = sample_scene_clip(SEED, index)
        assert SceneClip.from_dict(json.loads(json.dumps(clip.to_dict()))) == clip
    with pytest.raises(UserError, match="wrong fields; correct cycles"):
        SceneClip.from_dict({key: value for key, value in clip.to_dict().items() if key != "cycles"})


def test_impossible_clips_are_refused():
    clip = solos("waving", 1)[0]
    with pytest.raises(UserError, match="motion is 'flying'"):
        replace(clip, motions=("flying",))
    with pytest.raises(UserError, match="without a motion"):
        replace(clip, motions=("waving", "waving"))
    other = "fear" if clip.start.characters[0].mood != "fear" else "anger"
    with pytest.raises(UserError, match="are others"):
        replace(clip, end=replace(clip.end, characters=(replace(clip.end.characters[0], mood=other),)))
    with pytest.raises(UserError, match="two places"):
        replace(clip, end=replace(clip.end, layout=clip.end.layout + 1))
