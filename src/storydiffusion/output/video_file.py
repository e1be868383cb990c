"""Video files for browsers: H.264 in MP4, 4:2:0, index first. PyAV bundles libx264."""

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.atomic import draft

BT709 = 1  # code of the color space in H.264 and FFmpeg
LIMITED_RANGE = 1
LARGEST_FPS_DENOMINATOR = 1001  # largest denominator of a frame rate, as in 30000/1001 = 29.97


def write_video(path: str | Path, frames: Iterable[np.ndarray | Image.Image], fps: float, crf: int = 18) -> None:
    """Write frames (uint8 RGB (H, W, 3) or images of one size with even sides) to the MP4 file `path`, atomically.

    Frames are consumed one by one, so memory does not grow with their number. `crf` is x264's constant rate factor:
    0 is the best quality, 51 the worst, 18 visually lossless.

    Raises:
        ValueError: no frames, odd or differing sizes, or frames that are not uint8 RGB.
        UserError: where the file cannot be written; no partial file is left.
    """
    path = Path(path).absolute()  # FFmpeg reads a relative `a:b.mp4` as a protocol
    with draft(path) as temporary, _writing(path):
        _encode(temporary, frames, fps, crf)


def read_size(path: str | Path) -> tuple[int, int]:
    """Return the width and height of a video file in pixels. Raises UserError for a file that is not a video."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(Path(path).absolute())) as container:
            stream = container.streams.video[0]
            return stream.width, stream.height
    except (OSError, FFmpegError, IndexError) as error:
        raise UserError(f"cannot read the video {path} ({first_line(error)}): generate it again") from error


def encode_video(path: Path, frames: Iterable[np.ndarray | Image.Image], fps: float, crf: int = 18) -> None:
    """Write like `write_video`, but directly and without fsync, for a file that is read at once."""
    with _writing(path):
        _encode(path, frames, fps, crf)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    from av.error import FFmpegError

    try:
        yield
    except (OSError, FFmpegError) as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write {path}: {reason}; make room there or choose another folder") from error


def _encode(path: Path, frames: Iterable[np.ndarray | Image.Image], fps: float, crf: int) -> None:
    import av
    from av.video.reformatter import VideoReformatter

    rate = Fraction(fps).limit_denominator(LARGEST_FPS_DENOMINATOR)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), **_exact()})
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1  # so that the bytes do not depend on the number of cores
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        reformatter = VideoReformatter()  # shared: creating one costs more than a small frame
        size = None
        for number, frame in enumerate(frames):
            array = _checked(np.asarray(frame), number, size)
            if size is None:
                size = stream.height, stream.width = array.shape[:2]
            rgb = av.VideoFrame.from_ndarray(array, format="rgb24")
            encoded = reformatter.reformat(
                rgb, format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE, threads=1
            )
            encoded.pts, encoded.time_base = number, 1 / rate
            container.mux(stream.encode(encoded))
        if size is None:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode())


def _exact() -> dict[str, str]:
    """Return x264 options for reproducible bytes: its AVX-512 code varies from run to run."""
    return {"x264-params": "asm=sse4.2"} if platform.machine() in ("x86_64", "AMD64") else {}


def _checked(array: np.ndarray, number: int, size: tuple[int, ...] | None) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"frame {number} is {array.dtype} {array.shape}, not uint8 (H, W, 3)")
    height, width = array.shape[:2]
    if size is not None and (height, width) != size:
        raise ValueError(f"frame {number} is {width} × {height} pixels, those before it {size[1]} × {size[0]}")
    if height % 2 or width % 2 or not array.size:
        raise ValueError(f"frames are {width} × {height} pixels: H.264 with 4:2:0 color needs even sides")
    return np.ascontiguousarray(array)
