"""Every decoder gives the frames that were asked for, and says what is wrong with a video that has none."""

import contextlib
import io
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from storydiffusion.data.video_reader import (
    BACKENDS,
    UnreadableVideoError,
    Video,
    VideoInfo,
    VideoLimits,
    check_backend,
)
from storydiffusion.errors import UserError
from tests.helpers.videos import numbers_in, video

FRAMES = 24


OPEN_GOP = "open-gop=1:keyint=8:min-keyint=8:bframes=3"


def is_here(backend: str) -> bool:
    try:
        check_backend(backend)
    except UserError:
        return False
    return True


def needs(backend: str):
    return pytest.param(backend, marks=pytest.mark.skipif(not is_here(backend), reason=f"{backend} cannot be loaded"))


HERE = [needs(backend) for backend in BACKENDS]
needs_decord = pytest.mark.skipif(not is_here("decord"), reason="decord cannot be loaded")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return video(tmp_path_factory.mktemp("clip") / "a.mp4", FRAMES)


def encode(
    codec: str = "libx264",
    container: str = "mp4",
    colours: int | None = None,
    size: tuple[int, int] = (62, 46),
    **options: str,
) -> bytes:
    """Encode 24 frames of moving coloured stripes, 62 × 46 pixels, in the given format with the encoder's options."""
    buffer = io.BytesIO()
    width, height = size
    y, x = np.mgrid[:height, :width]
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=12, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        if colours is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = colours, 1
        for number in range(FRAMES):
            image = np.stack([(x * 4 + 9 * number) % 256, (y * 5 + 3 * number) % 256, (x + y) * 2], -1)
            rgb = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            output.mux(stream.encode(rgb.reformat(format="yuv420p", dst_colorspace=colours)))
        output.mux(stream.encode())
    return buffer.getvalue()


def decoded_from_the_start(blob: bytes) -> np.ndarray:
    with av.open(io.BytesIO(blob), "r") as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return frames


def test_video_properties_are_read(clip):
    assert Video(clip).info == VideoInfo(FRAMES, 8.0, 32, 64)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("indices", [[0], [23], [0, 4, 8, 12], [20, 3, 3, 11], list(range(FRAMES))])
def test_frames_are_decoded_in_the_requested_order(clip, backend, indices):
    frames = Video(clip).read(indices, backend)
    assert (frames.shape, frames.dtype) == ((len(indices), 32, 64, 3), np.uint8)
    assert numbers_in(frames.transpose(0, 3, 1, 2)) == indices


@pytest.mark.parametrize(
    "form",
    [
        {"bf": "3", "g": "250"},  # B frames: stored in another order than shown
        {"bf": "0", "g": "5"},
        {"x264-params": OPEN_GOP},
        {"container": "matroska"},
        {"codec": "mpeg4"},
        {"colours": 1},
        {"colours": 6},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", HERE)
def test_all_decoders_return_the_same_frames(backend, form):
    blob = encode(**form)
    assert Video(blob).info.frames == FRAMES
    for indices in ([0, 5, 6, 7, 13, 22, 23], [13, 14], [23]):
        np.testing.assert_array_equal(Video(blob).read(indices, backend), decoded_from_the_start(blob)[indices])


@pytest.mark.parametrize("codec", ["libsvtav1", "libx265"])
def test_pyav_decodes_wanted_frames_while_skipping_others(codec):
    """AV1's decoder takes the frames to skip from the first packet and would keep skipping to the end."""
    blob = encode(codec)
    for number, frame in enumerate(decoded_from_the_start(blob)):
        np.testing.assert_array_equal(Video(blob).read([number], "pyav"), frame[None])


@pytest.mark.parametrize("backend", HERE)
def test_frame_numbers_beyond_the_end_are_refused(clip, backend):
    with pytest.raises(UnreadableVideoError, match="it has 24 frames, not frames 5…24"):
        Video(clip).read([5, 24], backend)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda blob: b"", "0 bytes"),
        (lambda blob: b"no video at all, only words" * 40, "not a video"),
        (lambda blob: blob[: blob.index(b"mdat") + 200], "breaks off after"),
        (lambda blob: blob[:100], "no video"),
    ],
    ids=["empty", "words", "cut in its frames", "cut in its header"],
)
def test_damaged_video_is_refused_with_the_reason(clip, spoil, reason):
    with pytest.raises(UnreadableVideoError, match=reason):
        Video(spoil(clip))


@pytest.mark.parametrize("backend", HERE)
def test_undecodable_frames_are_refused(clip, backend):
    start = clip.index(b"mdat") + 4
    with pytest.raises(UnreadableVideoError):
        Video(clip[:start] + bytes(len(clip) - start)).read([0, FRAMES - 1], backend)


def test_single_frame_is_refused(tmp_path):
    with pytest.raises(UnreadableVideoError, match="1 frame: a clip needs 2"):
        Video(video(tmp_path / "a.mp4", 1))


def test_sound_alone_is_refused():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.rate = 8000
        output.mux(stream.encode(silence))
    with pytest.raises(UnreadableVideoError, match="no video stream"):
        Video(buffer.getvalue())


SDP = (
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
PLAYLISTS = {
    "sdp": SDP,
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "dash": b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period></Period></MPD>',
    "mpjpeg": b"--x\r\nContent-type: image/jpeg\r\n\r\n",
    "image": b"P6\n2 2\n255\n" + bytes(12),
    "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nwords\n",
}


@pytest.mark.parametrize("text", PLAYLISTS.values(), ids=list(PLAYLISTS))
def test_containers_that_are_not_listed_are_refused(text):
    """Among FFmpeg's others are those that bind ports and open other files and addresses."""
    with pytest.raises(UnreadableVideoError, match="it is not a video: "):
        Video(text)


def test_a_session_description_is_refused_before_it_is_read():
    """FFmpeg would bind the UDP ports that it names, and wait for packets."""
    with pytest.raises(UnreadableVideoError, match="its container is none of mov, mp4"):
        Video(SDP)


MATRICES = [(angle, mirrored) for angle in (0, 90, 180, 270) for mirrored in (False, True)]


def encode_turned(angle: float, mirrored: bool) -> bytes:
    """Encode a video whose coded frames have brightness 60 in the top left quarter, else 200, with a display matrix."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=8, options={"qp": "0"})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.set_display_rotation(angle, hflip=mirrored)
        image = np.full((32, 64, 3), 200, np.uint8)
        image[:16, :32] = 60
        for _ in range(4):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(("angle", "mirrored"), MATRICES)
@pytest.mark.parametrize("backend", HERE)
def test_the_display_matrix_is_applied_once_by_every_decoder(backend, angle, mirrored):
    video = Video(encode_turned(angle, mirrored))
    coded = np.full((32, 64), 200)
    coded[:16, :32] = 60
    upright = np.rot90(coded, angle // 90)  # both anticlockwise
    upright = upright[:, ::-1] if mirrored else upright
    assert (video.info.height, video.info.width) == upright.shape
    frames = video.read([0, 3], backend)
    assert frames.shape == (2, *upright.shape, 3)
    assert np.abs(frames.astype(int) - upright[..., None]).max() <= 3


def test_an_orientation_between_right_angles_is_refused():
    with pytest.raises(UnreadableVideoError, match=r"display matrix .* is not a rotation by a multiple of 90°"):
        Video(encode_turned(45, False))


def test_a_damaged_header_is_no_traceback():
    """Every byte of the boxes changed: the video is read or refused with the reason."""
    blob = encode_turned(90, False)
    start = blob.index(b"moov") - 4
    for place in range(start, len(blob), 3):
        damaged = bytearray(blob)
        damaged[place] ^= 0xFF
        with contextlib.suppress(UnreadableVideoError):
            assert Video(bytes(damaged)).info.frames > 1


@pytest.mark.parametrize(("width", "height"), [(61, 45), (62, 45), (61, 46), (24, 48)])
@pytest.mark.parametrize("backend", HERE)
def test_odd_sizes_are_decoded_or_refused_with_codec_and_remedy(backend, width, height):
    video = Video(encode("mpeg4", size=(width, height)))
    if (backend, width) == ("decord", 24):
        with pytest.raises(UnreadableVideoError, match=r"\(mpeg4, 24 × 48\); backend=pyav may read it"):
            video.read([0, 5], backend)
    else:
        assert video.read([0, 5], backend).shape == (2, height, width, 3)


@needs_decord
def test_error_names_a_codec_that_decord_lacks_and_the_decoder_that_has_it():
    with pytest.raises(UnreadableVideoError, match=r"\(av1, 62 × 46\); backend=pyav may read it"):
        Video(encode("libsvtav1")).read([0])


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (VideoLimits(megabytes=0.0001), "megabytes"),
        (VideoLimits(seconds=2.9), "3 seconds"),
        (VideoLimits(frames=23), "24 frames"),
        (VideoLimits(pixels=32 * 64 - 1), "2048 pixels"),
    ],
)
def test_huge_video_is_refused_before_decoding(clip, limits, reason):
    with pytest.raises(UnreadableVideoError, match=reason):
        Video(clip, limits)


def test_error_names_a_missing_decoder(clip):
    with pytest.raises(UserError, match=r"'opencv'.*decord, pyav, torchcodec"):
        Video(clip).read([0], "opencv")


def test_error_names_a_decoder_that_cannot_be_loaded(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    with pytest.raises(UserError, match="'decord' cannot be loaded"):
        check_backend("decord")


def test_reading_leaves_no_file_open(clip, tmp_path: Path):
    opened = Path("/proc/self/fd")
    if not opened.exists():
        pytest.skip("no /proc")
    Video(clip).read([0], "pyav")
    before = len(list(opened.iterdir()))
    for _ in range(5):
        Video(clip).read([0, 3], "pyav")
    assert len(list(opened.iterdir())) == before
