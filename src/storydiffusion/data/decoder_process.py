"""Video decoding in a process of its own, which is killed where it hangs and made anew.

A broken or hostile video can hang or crash a decoder's native code, which nothing in the same process can interrupt.
Videos go there and frames come back in one piece of shared memory. What is said beside is JSON, for nothing that such
a process sends may be unpickled. It is no fork: a decoder deadlocks where it has worked before the fork.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from storydiffusion.data.video_reader import (
    DEFAULT_LIMITS,
    UnreadableVideoError,
    Video,
    VideoInfo,
    VideoLimits,
    check_backend,
)
from storydiffusion.errors import UserError

STARTING = 300  # seconds for its imports, on a slow file system
VIDEOS = 1000  # after so many it is made anew, for decord leaks
MEGABYTES = 2048  # and after it has once held so many
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
            UserError: where the process cannot start.
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
            code = self._child.end()
            self._child = None
            raise UnreadableVideoError(f"it ends its decoder, with exit code {code}") from error
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
            if os.fstat(self.descriptor).st_size < size:
                os.ftruncate(self.descriptor, size)
            self._map = mmap.mmap(self.descriptor, max(1, size))
        return np.frombuffer(self._map, np.uint8, size).reshape(shape)


@dataclass
class _Child:
    process: "subprocess.Popen[bytes]"
    connection: "Connection[Any, Any]"
    file: BinaryIO  # of the memory
    memory: _Memory
    parent: int
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

    def end(self) -> int:
        """Kills the process, closes what was shared with it; returns its exit code."""
        code = self.process.poll()
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.file.close()
        return self.process.returncode if code is None else code


def _start(backend: str, limits: VideoLimits) -> _Child:
    ours, its = Pipe()
    file = _nameless_file()
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))
    settings = {"backend": backend, "limits": asdict(limits), "parent": os.getpid()}
    # -P: a module that lies in the working folder is not imported
    command = [sys.executable, "-P", "-m", __name__, str(its.fileno()), str(file.fileno()), json.dumps(settings)]
    with its:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=(its.fileno(), file.fileno()),
            env={**os.environ, "PYTHONPATH": path},
        )
    child = _Child(process, ours, file, _Memory(file.fileno()), os.getpid())
    try:
        if not ours.poll(STARTING):
            raise TimeoutError
        ours.recv_bytes(LONGEST_TEXT)
    except (EOFError, OSError) as error:
        code = child.end()
        raise UserError(
            f"the process that decodes videos does not start, exit code {code}: see what stands above"
        ) from error
    return child


def _nameless_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("frames"), "w+b")
    return tempfile.TemporaryFile()  # type: ignore[return-value]


def _serve(connection: "Connection[Any, Any]", memory: _Memory, backend: str, limits: VideoLimits) -> None:
    """Answers until the parent is gone."""
    video: Video | None = None
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
        connection.send_bytes(json.dumps({**answer, "peak": _peak()}).encode())


def _peak() -> float:
    """The most memory, in MB, that this process has held."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _end_with(parent: int) -> None:
    """The kernel kills this process when its parent ends, however that happens; Linux alone can."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def main() -> None:
    for name in UNTOUCHED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    settings = json.loads(sys.argv[3])
    _end_with(settings["parent"])
    check_backend(settings["backend"])
    check_backend("pyav")  # which reads the containers
    connection = Connection(int(sys.argv[1]))
    connection.send_bytes(b"ready")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write a line for every broken frame
    _serve(connection, _Memory(int(sys.argv[2])), settings["backend"], VideoLimits(**settings["limits"]))


if __name__ == "__main__":
    main()
