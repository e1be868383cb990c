import hashlib
import json
import math
import platform
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import PLACE_WORDS, THIRD_PERSON, vocabulary, words
from storydiffusion.storyworld.clips import SHARES, ClipTruth, caption_clip, follow, render_clip, sample_clip
from storydiffusion.storyworld.motions import MOTIONS
from storydiffusion.storyworld.renderer import character_mask, render
from storydiffusion.storyworld.truth import LOOKS, sample_truth
from storydiffusion.training.miniature.tokenizer import SPECIAL, build_tokenizer

STILLS = "4fcbcff294345389f2f0df19ff29e6ccb4d3afaeecd607856f064743938adcbe"
CLIPS = "7cd510cf792599b342daf5e11a9faf4c3f847afac5be0139e6ca842088604e4a"
VOCABULARY = "d2ec6cbd961e37db401deaaf9366b6e8952701f1f0e0b1f16b1c9961003e4d32"
SEED = 31
every_motion = pytest.mark.parametrize("motion", MOTIONS)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def clips(motion: str, count: int) -> list[ClipTruth]:
    return [sample_clip(SEED, index, motion) for index in range(count)]


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="rounding of colours may differ elsewhere"
)
def test_stills_keep_their_pixels():
    """Models were trained on stills: changes for clips must not change them."""
    assert sha256(b"".join(render(sample_truth(5, index)).tobytes() for index in range(150))) == STILLS


def test_clips_and_captions_are_the_same_on_every_machine():
    records = [sample_clip(7, index).to_dict() for index in range(300)]
    assert sha256(json.dumps(records, sort_keys=True).encode()) == CLIPS
    assert sha256(" ".join(vocabulary()).encode()) == VOCABULARY


def test_every_motion_occurs_at_its_share_and_seeds_differ():
    drawn = [sample_clip(SEED, index).motion for index in range(2000)]
    for motion, share in SHARES.items():
        expected = len(drawn) * share / sum(SHARES.values())
        assert 0.6 * expected < drawn.count(motion) < 1.4 * expected, motion
    assert len({sample_clip(seed, index) for seed in (SEED, 10_000) for index in range(300)}) == 600


@every_motion
def test_clips_start_and_end_in_stills_of_one_character(motion):
    for index, clip in enumerate(clips(motion, 5)):
        size = (64, 128)[index % 2]
        first, _, last = render_clip(clip, 3, size)
        assert np.array_equal(first, render(clip.start, size))
        assert np.array_equal(last, render(clip.end, size))
        assert all(getattr(clip.start, name) == getattr(clip.end, name) for name in LOOKS)
        assert (clip.start.place == clip.end.place) == (motion != "travelling")


@every_motion
def test_frame_count_is_free_and_rendering_repeats(motion):
    clip = sample_clip(SEED, 9, motion)
    few, many = render_clip(clip, 3, 64), render_clip(clip, 5, 64)
    assert many.shape == (5, 64, 64, 3)
    assert many.dtype == np.uint8
    assert np.array_equal(few, many[::2])
    assert np.array_equal(many[0], render_clip(clip, 1, 64)[0])


@every_motion
def test_limbs_never_jump(motion):
    def joints(clip: ClipTruth, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        stance = clip.stance(t)
        body = stance.pose
        place = np.array([stance.x, -body.hip])
        rest = [*place, *body.head, body.lean, body.joy, body.gaze, stance.facing, *body.foot]
        return np.array(body.arms, float) + place, np.array(body.legs, float) + place, np.array(rest)

    def step(a: np.ndarray, b: np.ndarray) -> float:
        """The order of two limbs is that of drawing, so it may change."""
        return min(np.abs(b - a).max(), np.abs(b[::-1] - a).max() if b.ndim == 3 else np.inf)

    steps = 400
    for clip in clips(motion, 8):
        track = [joints(clip, i / steps) for i in range(steps + 1)]
        assert max(step(a, b) for before, after in pairwise(track) for a, b in zip(before, after, strict=True)) < 2.0


@every_motion
def test_the_character_stays_whole_in_the_frame(motion):
    for clip in clips(motion, 12):
        for frame in follow(clip, 6, 64):
            assert min(frame.box) >= 1, (clip, frame)
            assert max(frame.box) <= 63, (clip, frame)


@pytest.mark.parametrize(
    "motion", sorted(MOTIONS.keys() - {"transition", "travelling", "sitting", "rising", "reading"})
)
def test_middle_is_no_blend_of_the_ends(motion):
    for clip in clips(motion, 4):
        frames = render_clip(clip, 13, 64).astype(float)
        mixtures = [(1 - weight) * frames[0] + weight * frames[-1] for weight in np.linspace(0, 1, 11)]
        errors = [min(np.abs(frame - mixture).mean() for mixture in mixtures) for frame in frames[3:-3]]
        assert max(errors) > (1 if motion in ("waving", "arriving") else 4)


def test_a_jump_leaves_the_ground_and_comes_back():
    for clip in clips("jumping", 8):
        frames = follow(clip, 9)
        assert frames[0].lift == frames[-1].lift == 0
        assert frames[4].lift > 8
        assert frames[4].box[3] < frames[0].box[3] - 8
        assert abs(frames[0].box[3] - frames[-1].box[3]) <= 1


@pytest.mark.parametrize("motion", ["crossing", "running"])
def test_walkers_go_one_way_on_moving_legs(motion):
    for clip in clips(motion, 5):
        frames = follow(clip, 8)
        way = clip.end.facing
        steps = [way * (b.x - a.x) for a, b in pairwise(frames)]
        assert min(steps) > 0
        assert sum(steps) >= 24
        assert all(way * (b.box[0] + b.box[2] - a.box[0] - a.box[2]) > 0 for a, b in pairwise(frames[::3]))
        ankles = np.array([[leg[2] for leg in clip.stance(t / 40).pose.legs] for t in range(41)])
        assert np.ptp(ankles[..., 0], axis=0).min() > 10


def test_a_run_there_and_back_flips_the_facing():
    for clip in clips("returning", 5):
        frames = follow(clip, 9, 64)
        assert frames[0].facing == clip.start.facing == -clip.end.facing == -frames[-1].facing
        assert abs(frames[4].x - frames[0].x) > 20
        assert frames[0].x == frames[-1].x


def test_a_turn_shows_the_back():
    for clip in clips("turning", 6):
        assert abs(clip.stance(0.5).turn) == pytest.approx(math.pi)
        assert clip.stance(0).turn == clip.stance(1).turn == 0
        frames = [frame.turn for frame in follow(clip, 7, 64)][:-1]
        assert frames == sorted(frames, key=abs)
    assert {clip.start.facing * clip.end.facing for clip in clips("turning", 20)} == {-1, 1}
    cat = replace(sample_clip(SEED, 0, "turning").start, kind="cat", hair=None, hat="none", hat_color=None)
    clip = ClipTruth("turning", cat, cat, 1)
    front, back = (character_mask(cat, stance=clip.stance(t)) for t in (0, 0.5))
    assert (front ^ back).sum() > 50  # the tail is elsewhere
    nose = (round(clip.stance(0.5).x) + 64, 66)
    first, _, middle, *_ = render_clip(clip, 5)
    assert np.abs(first[nose[1] - 8 : nose[1] + 8].astype(int) - middle[nose[1] - 8 : nose[1] + 8]).max() > 100


def test_phase_of_each_motion():
    assert {(c.start.action, c.end.action) for c in clips("sitting", 5)} == {("standing", "sitting")}
    assert {(c.start.action, c.end.action) for c in clips("rising", 5)} == {("sitting", "standing")}
    assert {(c.start.action, c.end.action) for c in clips("reading", 5)} == {("standing", "reading")}
    passages = clips("transition", 60) + clips("travelling", 60)
    assert all(c.start.action != c.end.action for c in passages)
    assert len({(c.start.action, c.end.action) for c in passages}) > 25
    assert all(c.start.object == "none" != c.end.object for c in clips("arriving", 20))


def test_scenery_is_static_behind_a_walker():
    for clip in clips("crossing", 4):
        frames, truths = render_clip(clip, 6), follow(clip, 6)
        left, right = min(f.box[0] for f in truths), max(f.box[2] for f in truths)
        top = min(f.box[1] for f in truths)
        for frame in frames:
            assert np.array_equal(frame[: top - 1], frames[0][: top - 1])
            assert np.array_equal(frame[:, : left - 1], frames[0][:, : left - 1])
            assert np.array_equal(frame[:, right + 1 :], frames[0][:, right + 1 :])


def test_scenery_passes_by_without_a_cut():
    for clip in clips("travelling", 3):
        frames = follow(clip, 9, 64)
        assert frames[0].place == clip.start.place
        assert frames[-1].place == clip.end.place
        images = render_clip(clip, 65, 64).astype(float)
        steps = [np.abs(b - a).mean() for a, b in pairwise(images)]
        assert max(steps) < 0.5 * np.abs(images[-1] - images[0]).mean()


def test_captions_use_the_words_of_the_stills():
    tokenizer = build_tokenizer(1)
    unknown = SPECIAL["<|unknown|>"]
    for index in range(600):
        clip = sample_clip(SEED, index)
        text = caption_clip(clip, index)
        tokens = tokenizer(text)["input_ids"]
        assert unknown not in tokens
        assert len(tokens) <= tokenizer.model_max_length
        assert clip.start.kind in words(text)
        assert PLACE_WORDS[clip.end.place] in text
    assert caption_clip(clip, 3) == caption_clip(clip, 3)
    assert len({caption_clip(clip, seed) for seed in range(50)}) > 10


@pytest.mark.parametrize(
    ("motion", "expected"),
    [
        ("crossing", "running"),
        ("returning", "running"),
        ("jumping", "jumping"),
        ("waving", "waving"),
        ("turning", "standing"),
        ("sitting", "sitting"),
        ("rising", "standing"),
        ("reading", "reading"),
    ],
)
def test_captions_name_the_motion(motion, expected):
    for clip in clips(motion, 8):
        text = caption_clip(clip, 1)
        assert expected in text or THIRD_PERSON[expected] in text


@every_motion
def test_json_round_trip(motion):
    clip = sample_clip(SEED, 2, motion)
    assert ClipTruth.from_dict(json.loads(json.dumps(clip.to_dict()))) == clip


def test_errors_name_invalid_clips():
    clip = sample_clip(SEED, 0, "waving")
    with pytest.raises(UserError, match="motion is 'flying'"):
        sample_clip(SEED, 0, "flying")
    with pytest.raises(UserError, match="motion is 'flying'"):
        replace(clip, motion="flying")
    other = next(value for value in ("red", "blue") if value != clip.start.shirt)
    with pytest.raises(UserError, match="shirt is"):
        replace(clip, end=replace(clip.end, shirt=other))
    with pytest.raises(UserError, match="layout is"):
        replace(clip, end=replace(clip.end, layout=clip.end.layout + 1))
    with pytest.raises(UserError, match="cycles is 0"):
        replace(clip, cycles=0)
    with pytest.raises(UserError, match="correct speed"):
        ClipTruth.from_dict({**clip.to_dict(), "speed": 1})
    with pytest.raises(UserError, match="frames is 0"):
        render_clip(clip, 0)
