"""Order of a story's frames, and captions below them."""

import itertools

import numpy as np
import pytest

from storydiffusion.output.story_frames import story_frames, with_captions


def panel(value: int, height: int = 8, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


PANELS = [panel(0), panel(100), panel(200)]


def between(number: int, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return five frames in equal steps; the boundary frames are wrong, since they must not be shown."""
    steps = [start + (end.astype(int) - start) * i // 4 for i in range(5)]
    return np.stack([panel(255), *steps[1:-1], panel(255)]).astype(np.uint8)


def shown(cuts: tuple[bool, ...] = (False,) * 3, hold: int = 2) -> list[tuple[int, int]]:
    return [(number, int(frame.max())) for number, frame in story_frames(PANELS, between, cuts, hold)]


def test_panels_are_held_and_transitions_repeat_no_frame():
    assert shown() == [
        (0, 0), (0, 0), (0, 25), (0, 50), (1, 75),
        (1, 100), (1, 100), (1, 125), (1, 150), (2, 175),
        (2, 200), (2, 200),
    ]  # fmt: skip


def test_a_cut_has_no_transition():
    assert shown((True, True, False), hold=1) == [(0, 0), (1, 100), (1, 125), (1, 150), (2, 175), (2, 200)]


def test_panels_are_consumed_one_by_one():
    """An infinite story starts immediately."""
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield panel(number % 256)

    frames = story_frames(endless(), between, [False] * 100, hold=1)
    for _ in range(9):
        next(frames)
    assert taken == [0, 1, 2]


def captioned(captions: list[str], height: int = 8, width: int = 16) -> list[np.ndarray]:
    frames = [(number, panel(60 * number + 40, height, width)) for number in range(len(captions))]
    return list(with_captions(frames, captions))


def test_without_captions_frames_are_unchanged():
    assert [frame.shape for frame in captioned(["", " "])] == [(8, 16, 3)] * 2


def test_captions_are_below_readably_large_images():
    frames = captioned(["One.", "", "A second sentence that takes more than a single line to show in full."])
    assert len({frame.shape for frame in frames}) == 1
    height, width, _ = frames[0].shape
    assert width == 512
    assert height > 256
    assert height % 2 == 0
    for number, frame in enumerate(frames):
        assert (frame[:256] == 60 * number + 40).all()
    ink = [(frame[256:].min(-1) < 90).sum() for frame in frames]
    assert ink[1] == 0 < ink[0] < ink[2]


def test_large_images_are_not_enlarged():
    assert captioned(["One."], 300, 600)[0][:300].shape == (300, 600, 3)


@pytest.mark.parametrize("caption", ["雪の日に、猫が公園を走っていました。とても楽しそうでした。", "word " * 60])
def test_long_captions_are_not_cut(caption):
    band = captioned([caption])[0][256:]
    ink = band.min(-1) < 90
    assert not ink[:2].any()
    assert not ink[-2:].any()
    assert not ink[:, :4].any()
    assert not ink[:, -4:].any()
