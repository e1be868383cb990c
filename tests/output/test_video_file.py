"""Videos: round trip, browser format, atomic writes."""

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.output.video_file import write_video


def make_frames(frames: int = 6, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    """Return frames of a bright square moving over a smooth background."""
    y, x = np.mgrid[:height, :width]
    for number in range(frames):
        frame = np.stack([x * 2, y * 3, np.full_like(x, 20 * number)], -1).astype(np.uint8)
        frame[10:30, 4 * number : 4 * number + 16] = (250, 40, 30)
        yield frame


def read(path: Path) -> tuple[np.ndarray, VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), stream


def test_frames_survive_encoding(tmp_path):
    write_video(tmp_path / "new" / "a.mp4", make_frames(), 8)
    frames, _ = read(tmp_path / "new" / "a.mp4")
    truth = np.stack(list(make_frames()))
    assert frames.shape == truth.shape
    assert np.abs(frames.astype(int) - truth).mean() < 4
    for number in range(6):  # colours are right, not only near: red stays red
        assert np.abs(frames[number, 14:26, 4 * number + 4 : 4 * number + 12] - np.array([250, 40, 30.0])).mean() < 5
    assert os.listdir(tmp_path / "new") == ["a.mp4"]


def test_the_format_suits_browsers(tmp_path):
    write_video(tmp_path / "a.mp4", make_frames(), 12.5)
    _, stream = read(tmp_path / "a.mp4")
    context = stream.codec_context
    assert (context.name, context.pix_fmt, float(stream.average_rate or 0)) == ("h264", "yuv420p", 12.5)
    blob = (tmp_path / "a.mp4").read_bytes()
    assert 0 < blob.index(b"moov") < blob.index(b"mdat")  # starts before all of it has come


def test_images_are_accepted_and_encoding_is_deterministic(tmp_path):
    write_video(tmp_path / "a.mp4", make_frames(), 8)
    write_video(tmp_path / "b.mp4", [Image.fromarray(frame) for frame in make_frames()], 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_frames_are_consumed_one_by_one(tmp_path):
    """Only as many frames are alive as the encoder looks ahead, whatever the length."""
    alive = most = 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def counted() -> Iterator[np.ndarray]:
        nonlocal alive, most
        for number in range(60):
            alive += 1
            most = max(most, alive)
            yield np.full((16, 16, 3), number, np.uint8).view(Counted)

    write_video(tmp_path / "a.mp4", counted(), 8)
    assert len(read(tmp_path / "a.mp4")[0]) == 60
    assert most < 10


@pytest.mark.parametrize(
    ("frames", "needs"),
    [
        ([], "at least one"),
        ([np.zeros((16, 17, 3), np.uint8)], "17 × 16"),
        ([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 32, 3), np.uint8)], "frame 1 is 32 × 16"),
        ([np.zeros((16, 16, 3), np.float32)], "float32"),
        ([np.zeros((16, 16), np.uint8)], "uint8"),
    ],
)
def test_invalid_frames_are_refused_and_the_old_file_is_kept(tmp_path, frames, needs):
    (tmp_path / "a.mp4").write_text("old")
    with pytest.raises(ValueError, match=needs):
        write_video(tmp_path / "a.mp4", frames, 8)
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "old"


def test_a_full_disk_leaves_no_partial_file(tmp_path):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # a write beyond fails as on a full disk
    try:
        with pytest.raises(UserError, match=r"cannot write .*a\.mp4"):
            write_video(tmp_path / "a.mp4", make_frames(60), 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not os.listdir(tmp_path)


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(UserError, match="directory"):
        write_video(tmp_path / "a.mp4", make_frames(), 8)
    assert os.listdir(tmp_path) == ["a.mp4"]
