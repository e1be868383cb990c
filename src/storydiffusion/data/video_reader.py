"""Frames of a video in memory, decoded by decord, PyAV or torchcodec: one interface, the same frames.

F frames, H and W pixels. Which frame has which number is told by the order of presentation times, whatever the frame
rate does. A rotation noted in the file is not applied. Pictures of 16, 24, 48 or 72 columns are refused by decord 0.6.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from storydiffusion.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer

FEWEST_FRAMES = 2  # with one, nothing moves


class UnreadableVideoError(Exception):
    """A video that cannot be read as asked; the message is the reason, to stand after the video's name."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video's container says: number of frames, frames a second, and size in pixels."""

    frames: int
    fps: float
    height: int
    width: int


@dataclass(frozen=True)
class VideoLimits:
    """The largest video that is decoded; what exceeds a limit is refused before its first frame is."""

    megabytes: float = 256
    seconds: float = 600
    frames: int = 36_000
    pixels: int = 4096 * 2304  # a frame's


DEFAULT_LIMITS = VideoLimits()


class Video:
    """A video in memory: its container is read, its packets are counted, none of its frames is decoded.

    Raises:
        UnreadableVideoError: empty, no video, cut off, fewer than two frames, or beyond a limit.
    """

    def __init__(self, blob: bytes, limits: VideoLimits = DEFAULT_LIMITS) -> None:
        self._blob = blob
        self._index = _index(blob, limits)

    @property
    def info(self) -> VideoInfo:
        return self._index.info

    def read(self, indices: Sequence[int], backend: str = "decord") -> np.ndarray:
        """The frames of these numbers, in any order, repeats allowed → uint8 RGB (F, H, W, 3).

        The decoder is made here, on one thread, and gone afterwards: call this in the process that needs the frames.

        Raises:
            UnreadableVideoError: for a frame that is not there or cannot be decoded.
            UserError: for a backend that does not exist or is not installed.
        """
        decode = _backend(backend)
        if not indices:
            raise ValueError("indices is empty: ask for one frame or more")
        if not 0 <= min(indices) <= max(indices) < self.info.frames:
            raise UnreadableVideoError(f"frames {min(indices)}…{max(indices)} were asked of {self.info.frames}")
        frames = decode(self._blob, list(indices), self._index)
        expected = (len(indices), self.info.height, self.info.width, 3)
        if frames.shape != expected or frames.dtype != np.uint8:
            raise UnreadableVideoError(f"{backend} decoded {frames.dtype} {frames.shape}, not uint8 {expected}")
        return frames


def check_backend(backend: str) -> None:
    """Raises UserError where `backend` does not exist or its library is missing."""
    _backend(backend)


@dataclass(frozen=True)
class _Index:
    info: VideoInfo
    times: tuple[int, ...]  # presentation times of the frames, ascending, in the stream's time base
    keys: tuple[int, ...]  # presentation times of the key frames, in the file's order
    has_open_gop: bool  # a key frame is followed in the file by frames that are shown before it and need earlier ones


def _open(blob: bytes) -> "InputContainer":
    import av
    from av.error import FFmpegError

    try:
        return av.open(BytesIO(blob), "r", metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        raise UnreadableVideoError(f"it is no video: {_reason(error)}") from error


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
        _check("pixels a frame", context.height * context.width, limits.pixels)
        _check("seconds", (container.duration or 0) / 1e6, limits.seconds)
        _check("frames", stream.frames, limits.frames)
        times: list[int | None] = []
        keys: list[int] = []
        has_open_gop = False
        try:
            for packet in container.demux(stream):  # each attribute costs, and there are hundreds of packets
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
        if len(times) < FEWEST_FRAMES:
            raise UnreadableVideoError(
                f"it has {len(times)} frame{'' if len(times) == 1 else 's'}: a clip needs 2 or more"
            )
        known = sorted({time for time in times if time is not None})
        if len(known) < len(times) or fps <= 0:
            raise UnreadableVideoError("its frames have no clear times")
        info = VideoInfo(len(times), fps, context.height, context.width)
        return _Index(info, tuple(known), tuple(keys), has_open_gop)


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
        found, wanted = {}, set(indices)  # decord would silently seek to wrong frames there: it reads one by one
        for number in range(max(indices) + 1):
            frame = reader.next()
            if number in wanted:
                found[number] = frame.asnumpy()
        return np.stack([found[number] for number in indices])
    except (decord.DECORDError, RuntimeError, StopIteration) as error:
        raise UnreadableVideoError(f"decord cannot decode it: {_reason(error)}") from error


def _decode_by_pyav(blob: bytes, indices: list[int], index: _Index) -> np.ndarray:
    wanted = {index.times[number] for number in indices}
    # NONREF: those that no other frame needs; to decode them only to drop them takes a fifth of the time
    found = _frames_by_pyav(blob, wanted, index, left_out="NONREF")
    if wanted - found.keys():  # some decoders do not change that from one packet to the next
        found = _frames_by_pyav(blob, wanted, index, left_out="DEFAULT")
    if lost := [number for number in sorted(indices) if index.times[number] not in found]:
        raise UnreadableVideoError(f"pyav cannot decode frame {lost[0]}")
    return np.stack([found[index.times[number]] for number in indices])


def _frames_by_pyav(
    blob: bytes, wanted: Collection[int], index: _Index, left_out: Literal["NONREF", "DEFAULT"]
) -> dict[int, np.ndarray]:
    """The frames shown at the times `wanted`, decoded from the key frame before the first of them to the last of them;
    in between frames of the kind `left_out` are not, unless they are wanted.
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
            # packets before the key frame are read and dropped: by which times a container seeks is its own affair
            packets = dropwhile(lambda packet: key is not None and packet.pts != key, container.demux(stream))
            for packet in packets:
                context.skip_frame = "DEFAULT" if packet.pts in wanted else left_out
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


def _backend(name: str) -> Decode:
    import importlib

    if name not in _DECODERS:
        raise UserError(f"there is no video decoder '{name}': choose one of {', '.join(BACKENDS)}")
    try:
        importlib.import_module(_MODULES[name])
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec raises RuntimeError without FFmpeg's libraries
        raise UserError(f"the video decoder '{name}' cannot be loaded here: install it, or choose pyav") from error
    return _DECODERS[name]
