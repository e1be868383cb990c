"""Decoding in a separate process: the same frames, and no video stops the caller."""

import ctypes
import gc
import os
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storydiffusion.data import decoder_process, video_reader
from storydiffusion.data.clip_sampling import ClipOptions
from storydiffusion.data.decoder_process import DecoderProcess
from storydiffusion.data.loader import ClipLoader, LoaderOptions
from storydiffusion.data.shard_index import index_missing
from storydiffusion.data.shards import find_shards
from storydiffusion.data.video_reader import UnreadableVideoError, Video, VideoLimits
from storydiffusion.errors import UserError
from tests.data.test_loader import quarantined
from tests.helpers.videos import video, write_tar


def marked(blob: bytes, word: bytes) -> bytes:
    """Return the same video with an extra box of this text, which players skip."""
    return blob + struct.pack(">I4s", 8 + len(word), b"free") + word


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return video(tmp_path_factory.mktemp("clip") / "a.mp4", 12)


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make decord hang, crash or raise at videos marked so."""
    decode = video_reader._DECODERS["decord"]

    def trap(blob, indices, index):
        if blob.endswith(b"HANG"):
            ctypes.PyDLL(None).pause()  # for ever, and the interpreter's lock is held
        if blob.endswith(b"CRASH"):
            ctypes.string_at(0)
        if blob.endswith(b"RAISE"):
            raise ZeroDivisionError("of a library")
        return decode(blob, indices, index)

    monkeypatch.setitem(video_reader._DECODERS, "decord", trap)


def children() -> list[int]:
    """Return the child processes, those of other tests in the same process included."""
    return [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.fixture
def decoders() -> Callable[[], list[int]]:
    """Return the child processes that the test has started."""
    gc.collect()  # loaders of other tests end theirs
    before = children()
    return lambda: [child for child in children() if child not in before]


def test_frames_equal_the_readers(clip, tmp_path):
    decoder = DecoderProcess()
    large = video(tmp_path / "large.mp4", 20, height=64, width=128)
    for blob, indices in ((clip, [0, 5, 3]), (large, list(range(20))), (clip, [11])):
        assert decoder.open(blob) == Video(blob).info
        np.testing.assert_array_equal(decoder.read(indices), Video(blob).read(indices))
    np.testing.assert_array_equal(decoder.read([0]), Video(clip).read([0]))  # more of the video opened last


def test_fault_of_a_video_is_reported_and_the_next_is_decoded(clip, traps):
    decoder = DecoderProcess(limits=VideoLimits(frames=20), seconds=0.5)
    reasons = {
        b"": "it is empty",
        clip[:-300]: "it breaks off",
        marked(clip, b"HANG"): "it was not decoded within 0.5 seconds",
        marked(clip, b"CRASH"): f"it ends its decoder's process, with exit code -{int(signal.SIGSEGV)}",
        marked(clip, b"RAISE"): "its decoder fails: ZeroDivisionError: of a library",
    }
    for blob, reason in reasons.items():
        with pytest.raises(UnreadableVideoError, match=f"^{reason}"):
            first_frame(decoder, blob)
        assert first_frame(decoder, clip).shape == (1, 32, 64, 3)


def first_frame(decoder: DecoderProcess, blob: bytes) -> np.ndarray:
    decoder.open(blob)
    return decoder.read([0])


def test_signals_do_not_interrupt_decoding(clip, decoders):
    decoder = DecoderProcess()
    decoder.open(clip)
    (process,) = decoders()
    for name in ("SIGUSR1", "SIGTERM", "SIGINT"):  # Slurm's, and those of a shell, reach all processes of a job
        os.kill(process, getattr(signal, name))
    assert decoder.read([0]).shape == (1, 32, 64, 3)
    assert decoders() == [process]


def test_process_is_replaced_after_some_videos_and_leaves_nothing(clip, decoders, monkeypatch):
    monkeypatch.setattr(decoder_process, "MAX_VIDEOS", 3)
    files = len(os.listdir("/proc/self/fd"))
    decoder, seen = DecoderProcess(), []
    for _ in range(7):
        decoder.open(clip)
        decoder.read([0])
        seen += decoders()
    assert list(Counter(seen).values()) == [3, 3, 1]
    del decoder
    assert decoders() == []
    assert len(os.listdir("/proc/self/fd")) == files


def test_process_ends_with_its_parent_even_while_hanging(clip, traps):
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        try:
            decoder = DecoderProcess(seconds=600)
            decoder.open(marked(clip, b"HANG"))
            os.write(write, struct.pack("i", *children()))
            decoder.read([0])
        finally:
            os._exit(1)
    (process,) = struct.unpack("i", os.read(read, 4))
    time.sleep(0.2)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    until = time.monotonic() + 10
    while is_running(process) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(process)
    os.close(read)
    os.close(write)


def is_running(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_error_names_a_missing_decoder(clip):
    with pytest.raises(UserError, match="'opencv'"):
        DecoderProcess("opencv").open(clip)


def resident() -> float:
    """Return the memory of this process and its decoder in MB."""
    pages = [int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in (os.getpid(), *children())]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize("decodes", [600, pytest.param(2000, marks=pytest.mark.slow)])
def test_many_decodes_with_a_tenth_bad_neither_hang_nor_leak(tmp_path, clip, traps, decodes):
    """Every tenth video is truncated, garbage, empty or broken; of 70 bad ones one hangs, one crashes the decoder."""
    at = clip.index(b"mdat") + 4
    bad = [clip[: len(clip) // 2], b"garbage" * 300, b"", clip[:at] + bytes(len(clip) - at)]
    marks = {50: marked(clip, b"HANG"), 60: marked(clip, b"CRASH")}
    spoilt = {}
    for shard in range(4):
        members = {}
        for number in range(decodes // 4):
            key, blob = f"{shard}x{number:03d}", clip
            if number % 10 == 7:
                blob = marks.get(len(spoilt) % 70, bad[len(spoilt) % len(bad)])
                spoilt[key] = blob
            members |= {f"{key}.mp4": blob, f"{key}.txt": key.encode()}
        write_tar(tmp_path / f"{shard}.tar", members)
    index_missing(find_shards(str(tmp_path)))
    clips = ClipOptions(frames=3, stride=2, height=16, width=16, caption_dropout=0.0)
    options = LoaderOptions(str(tmp_path), 20, clips, rejected_share=0.2, decode_seconds=2)
    loader, keys, memory = ClipLoader(options, quarantine=tmp_path / "quarantine.csv"), [], []
    for batch in loader:
        keys += batch.keys
        memory.append(resident())
    rows = quarantined(tmp_path / "quarantine.csv")
    hanging = {key for key, blob in spoilt.items() if blob.endswith(b"HANG")}
    assert len(hanging) == (decodes // 10 + 19) // 70
    assert len(spoilt) == loader.rejected == len({row["position"] for row in rows}) == decodes // 10
    assert {row["key"] for row in rows} == set(spoilt)
    assert (len(keys), set(keys) & set(spoilt)) == (decodes, set())
    assert {row["key"] for row in rows if "not decoded within" in row["reason"]} == hanging
    assert max(memory[10:]) - memory[10] < 50
