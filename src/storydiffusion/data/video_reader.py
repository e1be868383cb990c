"""Decode frames of a video in memory by decord, PyAV or torchcodec: one interface, the same frames.

F frames, H and W pixels. Frames are numbered by presentation time, whatever the frame rate does. The display matrix of
MP4 and MOV files is applied, so frames are upright. decord 0.6 refuses frames 16, 24, 48 or 72 pixels wide, and AV1.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from storydiffusion.data.display_matrix import Orientation, UnknownOrientationError, clear_matrix, read_orientation
from storydiffusion.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer

MIN_FRAMES = 2  # one frame has no motion
CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg")
"""FFmpeg's demuxers that read videos: none opens another file or a network socket, as sdp, hls and concat do."""


class UnreadableVideoError(Exception):
    """A video cannot be read; the message is the reason, to follow the video's name."""


@dataclass(frozen=True)
class VideoInfo:
    """A video's properties according to its container: number of frames, frames per second, upright size in pixels."""

    frames: int
    fps: float
    height: int
    width: int


@dataclass(frozen=True)
class VideoLimits:
    """The largest video to decode; larger ones are refused before their first frame is decoded."""

    megabytes: float = 256
    seconds: float = 600
    frames: int = 36_000
    pixels: int = 4096 * 2304  # of one frame


DEFAULT_LIMITS = VideoLimits()


class Video:
    """A video in memory. Construction reads the container and counts packets without decoding a frame.

    Raises:
        UnreadableVideoError: the video is empty, truncated, of another format, beyond a limit or has fewer than two
            frames.
    """

    def __init__(self, blob: bytes, limits: VideoLimits = DEFAULT_LIMITS) -> None:
        self._blob = blob
        self._index = _index(blob, limits)

    @property
    def info(self) -> VideoInfo:
        return self._index.info

    def read(self, indices: Sequence[int], backend: str = "decord") -> np.ndarray:
        """Decode the frames `indices`, in any order and with repeats, to uint8 RGB (F, H, W, 3).

        The decoder lives only for this call, on one thread, in the calling process.

        Raises:
            UnreadableVideoError: a frame does not exist or cannot be decoded.
            UserError: the backend does not exist or is not installed.
        """
        decode = _load_backend(backend)
        if not indices:
            raise ValueError("indices is empty: give at least one frame")
        if not 0 <= min(indices) <= max(indices) < self.info.frames:
            raise UnreadableVideoError(f"it has {self.info.frames} frames, not frames {min(indices)}…{max(indices)}")
        orientation = self._index.orientation
        blob = self._blob if orientation == Orientation() else clear_matrix(self._blob)
        try:
            frames = decode(blob, list(indices), self._index)
        except UnreadableVideoError as error:
            raise UnreadableVideoError(f"{error}{self._advise(backend)}") from error
        expected = (len(indices), *orientation.compute_size(self.info.height, self.info.width), 3)
        if frames.shape != expected or frames.dtype != np.uint8:
            raise UnreadableVideoError(
                f"{backend} decoded {frames.dtype} {frames.shape}, not uint8 {expected}{self._advise(backend)}"
            )
        return orientation.apply(frames)

    def _advise(self, backend: str) -> str:
        """Return the codec and size that a decoder failed on, and the decoder that reads most of them."""
        video = f" ({self._index.codec}, {self.info.width} × {self.info.height})"
        return video if backend == "pyav" else f"{video}; backend=pyav may read it"


def check_backend(backend: str) -> None:
    """Raise UserError if `backend` does not exist or its library is missing."""
    _load_backend(backend)


@dataclass(frozen=True)
class _Index:
    info: VideoInfo
    times: tuple[int, ...]  # presentation times of the frames, ascending, in the stream's time base
    keys: tuple[int, ...]  # presentation times of the key frames, in the file's order
    has_open_gop: bool  # frames shown before a key frame follow it in the file and need earlier ones
    codec: str
    orientation: Orientation


def _open(blob: bytes) -> "InputContainer":
    import av
    from av.error import ArgumentError, FFmpegError

    only_files = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
    try:
        return av.open(BytesIO(blob), "r", metadata_errors="replace", container_options=only_files)
    except ArgumentError as error:  # of the list
        raise UnreadableVideoError(f"it is not a video: its container is none of {', '.join(CONTAINERS)}") from error
    except (FFmpegError, ValueError) as error:
        raise UnreadableVideoError(f"it is not a video: {_reason(error)}") from error


def _index(blob: bytes, limits: VideoLimits) -> _Index:
    from av.error import FFmpegError

    if not blob:
        raise UnreadableVideoError("it is empty, 0 bytes")
    _check("megabytes", len(blob) / 1e6, limits.megabytes)
    with _open(blob) as container:
        if not container.streams.video:
            raise UnreadableVideoError("it has no video stream")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            raise UnreadableVideoError("its codec is unknown to FFmpeg")
        _check("pixels a frame", context.height * context.width, limits.pixels)
        _check("seconds", (container.duration or 0) / 1e6, limits.seconds)
        _check("frames", stream.frames, limits.frames)
        times: list[int | None] = []
        keys: list[int] = []
        has_open_gop = False
        try:
            for packet in container.demux(stream):  # attribute access is slow, and there are hundreds of packets
                if packet.size and not packet.is_discard:
                    time = packet.pts
                    times.append(time)
                    if time is None:
                        continue
                    if packet.is_keyframe:
                        keys.append(time)
                    elif keys and time < keys[-1]:
                        has_open_gop = True
                    if len(times) > limits.frames:
                        break
            _check("frames", len(times), limits.frames)
        except FFmpegError as error:
            raise UnreadableVideoError(f"it breaks off after {len(times)} frames: {_reason(error)}") from error
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if len(times) < stream.frames:
            raise UnreadableVideoError(f"it breaks off after {len(times)} of {stream.frames} frames")
        if len(times) < MIN_FRAMES:
            raise UnreadableVideoError(
                f"it has {len(times)} frame{'' if len(times) == 1 else 's'}: a clip needs 2 or more"
            )
        known = sorted({time for time in times if time is not None})
        if len(known) < len(times) or fps <= 0:
            raise UnreadableVideoError("its frames have no clear times")
        try:
            orientation = read_orientation(blob)
        except UnknownOrientationError as error:
            raise UnreadableVideoError(str(error)) from error
        info = VideoInfo(len(times), fps, *orientation.compute_size(context.height, context.width))
        return _Index(info, tuple(known), tuple(keys), has_open_gop, context.codec.canonical_name, orientation)


def _check(what: str, value: float, limit: float) -> None:
    if value > limit:
        raise UnreadableVideoError(f"it has {value:.7g} {what}, the limit is {limit:.7g}")


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _decode_by_decord(blob: bytes, indices: list[int], index: _Index) -> np.ndarray:
    import decord

    try:
        reader = decord.VideoReader(BytesIO(blob), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != index.info.frames:
            raise UnreadableVideoError(f"decord counts {len(reader)} frames, its packets are {index.info.frames}")
        if not index.has_open_gop:
            return reader.get_batch(indices).asnumpy()
        found, wanted = {}, set(indices)  # decord would silently seek to wrong frames there, so read one by one
        for number in range(max(indices) + 1):
            frame = reader.next()
            if number in wanted:
                found[number] = frame.asnumpy()
        return np.stack([found[number] for number in indices])
    except (decord.DECORDError, RuntimeError, StopIteration) as error:
        reason = re.sub(r"^\[[\d:]+\] \S+: ", "", _reason(error))  # without the time and decord's source line
        raise UnreadableVideoError(f"decord cannot decode it: {reason}") from error


def _decode_by_pyav(blob: bytes, indices: list[int], index: _Index) -> np.ndarray:
    wanted = {index.times[number] for number in indices}
    # NONREF: frames that no other frame needs; decoding them only to drop them takes a fifth of the time
    found = _frames_by_pyav(blob, wanted, index, skipped="NONREF")
    if wanted - found.keys():  # some decoders do not change skipping from one packet to the next
        found = _frames_by_pyav(blob, wanted, index, skipped="DEFAULT")
    if lost := [number for number in sorted(indices) if index.times[number] not in found]:
        raise UnreadableVideoError(f"pyav cannot decode frame {lost[0]}")
    return np.stack([found[index.times[number]] for number in indices])


def _frames_by_pyav(
    blob: bytes, wanted: Collection[int], index: _Index, skipped: Literal["NONREF", "DEFAULT"]
) -> dict[int, np.ndarray]:
    """Decode the frames shown at the times `wanted`, from the key frame before the first to the last of them.

    Unwanted frames of the kind `skipped` are not decoded.
    """
    from av.error import FFmpegError

    first = min(wanted)
    key = max((time for time in index.keys if time <= first), default=None)
    found: dict[int, np.ndarray] = {}
    try:
        with _open(blob) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            context.thread_count = 1
            # packets before the key frame are read and dropped, because containers seek by different times
            packets = dropwhile(lambda packet: key is not None and packet.pts != key, container.demux(stream))
            for packet in packets:
                context.skip_frame = "DEFAULT" if packet.pts in wanted else skipped
                for frame in packet.decode():
                    if frame.pts is not None and frame.pts in wanted:
                        found[frame.pts] = frame.to_ndarray(format="rgb24")
                if len(found) == len(wanted):
                    break
    except FFmpegError as error:
        raise UnreadableVideoError(f"pyav cannot decode it: {_reason(error)}") from error
    return found


def _decode_by_torchcodec(blob: bytes, indices: list[int], index: _Index) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    try:
        decoder = VideoDecoder(blob, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC")
        if len(decoder) != index.info.frames:
            raise UnreadableVideoError(f"torchcodec counts {len(decoder)} frames, its packets are {index.info.frames}")
        return decoder.get_frames_at(indices).data.numpy()
    except (RuntimeError, ValueError) as error:
        raise UnreadableVideoError(f"torchcodec cannot decode it: {_reason(error)}") from error


Decode = Callable[[bytes, list[int], Any], np.ndarray]
_DECODERS: Mapping[str, Decode] = {
    "decord": _decode_by_decord,
    "pyav": _decode_by_pyav,
    "torchcodec": _decode_by_torchcodec,
}
BACKENDS = tuple(_DECODERS)
_MODULES = {"decord": "decord", "pyav": "av", "torchcodec": "torchcodec.decoders"}


def _load_backend(name: str) -> Decode:
    import importlib

    if name not in _DECODERS:
        raise UserError(f"unknown video decoder '{name}': choose one of {', '.join(BACKENDS)}")
    try:
        importlib.import_module(_MODULES[name])
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec raises RuntimeError without FFmpeg's libraries
        raise UserError(f"the video decoder '{name}' cannot be loaded: install it, or choose pyav") from error
    return _DECODERS[name]
