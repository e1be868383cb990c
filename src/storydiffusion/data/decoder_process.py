"""Video decoding in a process of its own, which is killed where it hangs and made anew.

A broken or hostile video can hang or crash a decoder's native code, which nothing in the same process can interrupt.
Videos go there and frames come back in one piece of shared memory. What is said beside is JSON, for nothing that such
a process sends may be unpickled. It is a fork, there in milliseconds; decord may deadlock in a fork of a process that
has decoded itself, so nothing here decodes but such processes.
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

VIDEOS = 1000  # after so many it is made anew, for decoders leak
MEGABYTES = 2048  # and after its memory has once grown by so many
LONGEST_TEXT = 65_536
UNTOUCHED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # a job's signals: only its parent ends it


class DecoderProcess:
    """Decodes videos one after the other; the process starts with the first. For one caller at a time.

    Args:
        seconds: for opening a video, and again for decoding a clip of it.
    """

    def __init__(self, backend: str = "decord", limits: VideoLimits = DEFAULT_LIMITS, seconds: float = 60) -> None:
        self.backend, self.limits, self.seconds = backend, limits, seconds
        self._child: _Child | None = None

    def open(self, blob: bytes) -> VideoInfo:
        """What this video is; `read` is of the video opened last.

        Raises:
            UnreadableVideoError: as `Video` does, and where the process takes too long or dies.
            UserError: for a backend that does not exist or is not installed.
        """
        if self._child is not None and self._child.is_worn:
            self.close()
        self._child = self._child or _start(self.backend, self.limits)
        self._child.memory.put(blob)
        return VideoInfo(**self._ask({"video": len(blob)})["info"])

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The frames of these numbers → uint8 RGB (F, H, W, 3) in shared memory: valid until the next call.

        Raises UnreadableVideoError as `Video.read` does, and where the process takes too long or dies.
        """
        shape = self._ask({"frames": list(indices)})["shape"]
        assert self._child is not None
        return self._child.memory.view(shape)

    def close(self) -> None:
        """Ends the process; the next video starts another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def __del__(self) -> None:
        if self._child is not None and self._child.parent == os.getpid():  # not a copy in a fork
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
    """A nameless file that two processes map: it grows with what is put into it and goes with the last of them."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    def put(self, data: bytes | np.ndarray) -> None:
        size = data.nbytes if isinstance(data, np.ndarray) else len(data)
        self.view((size,))[:] = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1)

    def view(self, shape: Sequence[int]) -> np.ndarray:
        """Its first bytes as uint8 of this shape."""
        size = int(np.prod(shape))
        if self._map is None or len(self._map) < size:
            if os.fstat(self.descriptor).st_size < size + 1:
                os.ftruncate(self.descriptor, size + 1)
            self._map = mmap.mmap(self.descriptor, size + 1)  # an empty one cannot be mapped
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
        return self.videos >= VIDEOS or self.peak > MEGABYTES

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Raises TimeoutError, and EOFError or OSError where the process has ended."""
        self.connection.send_bytes(json.dumps(request).encode())
        if not self.connection.poll(seconds):
            raise TimeoutError
        answer = json.loads(self.connection.recv_bytes(LONGEST_TEXT))
        self.videos += "video" in request
        self.peak = answer["peak"]
        return answer

    def end(self, patience: float = 0) -> int:
        """Kills the process, after so many seconds for its own end; returns its exit code, negative for a signal."""
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
    for name in (backend, "pyav"):  # which reads the containers; loaded here, the forks need not do it
        check_backend(name)
    ours, its = Pipe()
    file = _nameless_file()
    parent = os.getpid()
    process = os.fork()
    if not process:
        ours.close()
        _live(its, _Memory(file.fileno()), backend, limits, parent)
    its.close()
    return _Child(process, parent, ours, file, _Memory(file.fileno()))


def _nameless_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("frames"), "w+b")
    return tempfile.TemporaryFile()  # type: ignore[return-value]


def _live(
    connection: "Connection[Any, Any]", memory: _Memory, backend: str, limits: VideoLimits, parent: int
) -> NoReturn:
    """The life of the process, which shares nothing more with its parent and leaves alone what it has of it."""
    try:
        for name in UNTOUCHED:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        _end_with(parent)
        gc.freeze()  # no finalizer of the parent's objects runs here
        faulthandler.disable()  # a crash is told of in one sentence, by the parent
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write a line for every broken frame
        _serve(connection, memory, backend, limits)
    finally:
        os._exit(0)


def _serve(connection: "Connection[Any, Any]", memory: _Memory, backend: str, limits: VideoLimits) -> None:
    """Answers until the parent is gone."""
    video: Video | None = None
    before = _peak()
    while True:
        try:
            request = json.loads(connection.recv_bytes(LONGEST_TEXT))
        except EOFError:
            return
        try:
            if "video" in request:
                video = None  # the one before may be large
                video = Video(memory.view((request["video"],)).tobytes(), limits)
                answer: dict[str, Any] = {"info": asdict(video.info)}
            else:
                assert video is not None
                frames = video.read(request["frames"], backend)
                memory.put(frames)
                answer = {"shape": frames.shape}
        except UnreadableVideoError as error:
            answer = {"unreadable": str(error)}
        except Exception as error:  # of libraries that meet what they never met; it is named and counted
            answer = {"unreadable": f"its decoder fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        connection.send_bytes(json.dumps({**answer, "peak": _peak() - before}).encode())


def _peak() -> float:
    """The most memory, in MB, that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _end_with(parent: int) -> None:
    """The kernel kills this process when its parent ends, however that happens; Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
