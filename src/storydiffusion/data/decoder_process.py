"""Decode videos in a separate process, which is killed when it hangs and then replaced.

A broken or hostile video can hang or crash a decoder's native code, which nothing in the same process can interrupt.
Videos and frames are exchanged in one piece of shared memory, all other messages as JSON, because nothing that such a
process sends may be unpickled. The process is a fork, started in milliseconds; decord may deadlock in the fork of a
process that has decoded itself, so only these processes decode.
"""

import ctypes
import faulthandler
import gc
import json
import mmap
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any, BinaryIO, NoReturn

import numpy as np

from storydiffusion.data.video_reader import (
    DEFAULT_LIMITS,
    UnreadableVideoError,
    Video,
    VideoInfo,
    VideoLimits,
    check_backend,
)

MAX_VIDEOS = 1000  # then the process is replaced, because decoders leak memory
MAX_MEGABYTES = 2048  # growth of its memory after which it is replaced
MAX_MESSAGE_BYTES = 65_536
IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # of a job: only the parent ends this process


class DecoderProcess:
    """Decodes videos one at a time for one caller; the process starts with the first video.

    Args:
        seconds: time limit for opening a video, and again for decoding a clip of it.
    """

    def __init__(self, backend: str = "decord", limits: VideoLimits = DEFAULT_LIMITS, seconds: float = 60) -> None:
        self.backend, self.limits, self.seconds = backend, limits, seconds
        self._child: _Child | None = None

    def open(self, blob: bytes) -> VideoInfo:
        """Open a video for `read` and return its properties.

        Raises:
            UnreadableVideoError: as `Video`, and if the process takes too long or dies.
            UserError: the backend does not exist or is not installed.
        """
        if self._child is not None and self._child.is_worn:
            self.close()
        self._child = self._child or _start(self.backend, self.limits)
        self._child.memory.put(blob)
        return VideoInfo(**self._ask({"video": len(blob)})["info"])

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Decode the frames `indices` to uint8 RGB (F, H, W, 3) in shared memory, valid until the next call.

        Raises UnreadableVideoError as `Video.read`, and if the process takes too long or dies.
        """
        shape = self._ask({"frames": list(indices)})["shape"]
        assert self._child is not None
        return self._child.memory.view(shape)

    def close(self) -> None:
        """End the process; the next video starts another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def __del__(self) -> None:
        if self._child is not None and self._child.parent == os.getpid():  # not the copy in a fork
            self.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._child is None:
            raise ValueError("no video is open")
        try:
            answer = self._child.ask(request, self.seconds)
        except TimeoutError as error:
            self.close()
            raise UnreadableVideoError(f"it was not decoded within {self.seconds:g} seconds") from error
        except (EOFError, OSError) as error:
            code = self._child.end(patience=1)
            self._child = None
            raise UnreadableVideoError(f"it ends its decoder's process, with exit code {code}") from error
        if "unreadable" in answer:
            raise UnreadableVideoError(answer["unreadable"])
        return answer


class _Memory:
    """An anonymous file that two processes map; it grows with its content and vanishes with the last of them."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    def put(self, data: bytes | np.ndarray) -> None:
        size = data.nbytes if isinstance(data, np.ndarray) else len(data)
        self.view((size,))[:] = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1)

    def view(self, shape: Sequence[int]) -> np.ndarray:
        """Return its first bytes as uint8 of this shape."""
        size = int(np.prod(shape))
        if self._map is None or len(self._map) < size:
            if os.fstat(self.descriptor).st_size < size + 1:
                os.ftruncate(self.descriptor, size + 1)
            self._map = mmap.mmap(self.descriptor, size + 1)  # an empty file cannot be mapped
        return np.frombuffer(self._map, np.uint8, size).reshape(shape)


@dataclass
class _Child:
    process: int
    parent: int
    connection: "Connection[Any, Any]"
    file: BinaryIO  # of the memory
    memory: _Memory
    videos: int = 0
    peak: float = 0  # MB

    @property
    def is_worn(self) -> bool:
        return self.videos >= MAX_VIDEOS or self.peak > MAX_MEGABYTES

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and return the answer; raise TimeoutError, or EOFError or OSError if the process has ended."""
        self.connection.send_bytes(json.dumps(request).encode())
        if not self.connection.poll(seconds):
            raise TimeoutError
        answer = json.loads(self.connection.recv_bytes(MAX_MESSAGE_BYTES))
        self.videos += "video" in request
        self.peak = answer["peak"]
        return answer

    def end(self, patience: float = 0) -> int:
        """Wait `patience` seconds for the process to end, then kill it; return its exit code, negative for a signal."""
        until = time.monotonic() + patience
        process, status = os.waitpid(self.process, os.WNOHANG)
        while not process and time.monotonic() < until:
            time.sleep(0.01)
            process, status = os.waitpid(self.process, os.WNOHANG)
        if not process:
            os.kill(self.process, signal.SIGKILL)
            _, status = os.waitpid(self.process, 0)
        self.connection.close()
        self.file.close()
        return os.waitstatus_to_exitcode(status)


def _start(backend: str, limits: VideoLimits) -> _Child:
    for name in (backend, "pyav"):  # pyav reads the containers; libraries loaded here are shared by the forks
        check_backend(name)
    ours, theirs = Pipe()
    file = _open_anonymous_file()
    parent = os.getpid()
    process = os.fork()
    if not process:
        ours.close()
        _run_child(theirs, _Memory(file.fileno()), backend, limits, parent)
    theirs.close()
    return _Child(process, parent, ours, file, _Memory(file.fileno()))


def _open_anonymous_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("frames"), "w+b")
    return tempfile.TemporaryFile()  # type: ignore[return-value]


def _run_child(
    connection: "Connection[Any, Any]", memory: _Memory, backend: str, limits: VideoLimits, parent: int
) -> NoReturn:
    """Run the child process: detach it from the parent's signals, objects and output, then serve."""
    try:
        for name in IGNORED_SIGNALS:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        _end_with(parent)
        gc.freeze()  # no finalizer of the parent's objects runs here
        faulthandler.disable()  # the parent reports a crash in one sentence
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write a line for every broken frame
        _serve(connection, memory, backend, limits)
    finally:
        os._exit(0)


def _serve(connection: "Connection[Any, Any]", memory: _Memory, backend: str, limits: VideoLimits) -> None:
    """Answer requests until the parent is gone."""
    video: Video | None = None
    before = _get_peak_memory()
    while True:
        try:
            request = json.loads(connection.recv_bytes(MAX_MESSAGE_BYTES))
        except EOFError:
            return
        try:
            if "video" in request:
                video = None  # free the previous video
                video = Video(memory.view((request["video"],)).tobytes(), limits)
                answer: dict[str, Any] = {"info": asdict(video.info)}
            else:
                assert video is not None
                frames = video.read(request["frames"], backend)
                memory.put(frames)
                answer = {"shape": frames.shape}
        except UnreadableVideoError as error:
            answer = {"unreadable": str(error)}
        except Exception as error:  # libraries raise anything on hostile input; it is reported and counted
            answer = {"unreadable": f"its decoder fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        connection.send_bytes(json.dumps({**answer, "peak": _get_peak_memory() - before}).encode())


def _get_peak_memory() -> float:
    """Return the peak memory of this process in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, however that happens; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
