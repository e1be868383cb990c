"""Shards at http(s), s3 and gs addresses: listed from patterns, fetched with retries into a cache of bounded size."""

import hashlib
import os
import random
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from storydiffusion.data.shard_members import UnreadableShardError, read_members
from storydiffusion.errors import UserError, first_line
from storydiffusion.files.atomic import draft_path

SCHEMES = ("http", "https", "s3", "gs")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""Scheme → the package through which fsspec reads it; aiohttp, for http, is always installed."""
COPY = re.compile(r"[0-9a-f]{16}-")
"""Start of the names of copies; the digits are of the address's SHA-256."""
LONGEST_PAUSE = 60.0  # seconds between two tries
PAUSES = random.SystemRandom()
"""Draws pauses: processes share a training's seed, and would ask a busy server at the same moments."""


@dataclass(frozen=True)
class StreamOptions:
    """How shards are fetched.

    shuffle: samples of the buffer from which the next one is drawn. cache: folder for fetched shards. cache_gb: its
    size; beyond it the least recently used shards are removed before the next one is fetched. retries: further tries of
    a shard, after pauses that double. timeout_seconds: the longest time without a byte.
    """

    shuffle: int
    cache: str
    cache_gb: float
    retries: int
    timeout_seconds: float


def list_urls(patterns: str | Sequence[str]) -> list[str]:
    """Return the addresses that brace patterns name, `https://host/{000000..000099}.tar`, or local files too.

    Raises:
        UserError: a pattern that does not expand, a command, another scheme, a missing package, or no address.
    """
    import braceexpand

    urls: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if "|" in pattern or pattern.strip().lower().startswith("pipe:"):
            raise UserError(f"shards={pattern} is a command: give addresses of {', '.join(SCHEMES)}, or files")
        scheme = pattern.partition("://")[0] if "://" in pattern else ""
        if scheme and scheme not in SCHEMES:
            raise UserError(f"shards={pattern} has the scheme {scheme}: give one of {', '.join(SCHEMES)}, or files")
        _check_package(scheme)
        try:
            urls += braceexpand.braceexpand(pattern)
        except ValueError as error:
            raise UserError(f"shards={pattern} cannot be expanded: {error}") from error
    if not urls:
        raise UserError("no shards are named: give addresses, or a brace pattern of them")
    return urls


def _check_package(scheme: str) -> None:
    from importlib.util import find_spec

    package = PACKAGES.get(scheme)
    if package is not None and find_spec(package) is None:
        raise UserError(f"shards at {scheme}:// need the package {package}: pip install '.[stream]' in a checkout")


class ShardFetcher:
    """A stage of a webdataset pipeline: addresses → open local copies, {url, stream}.

    A copy is opened before another process can remove it, and stays readable when it is removed.

    Args:
        report: called with the address and the reason of a shard that cannot be used.
    """

    def __init__(self, options: StreamOptions, report: Callable[[str, str], None]) -> None:
        self.options, self.report = options, report

    def __call__(self, sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for source in sources:
            try:
                stream = self.open(source["url"])
            except (OSError, UnreadableShardError) as error:
                self.report(source["url"], first_line(error))
                continue
            with stream:
                yield {"url": source["url"], "stream": stream}

    def open(self, url: str) -> BinaryIO:
        """Open a complete local copy of a shard.

        Raises:
            OSError: it cannot be fetched, after the last try.
            UnreadableShardError: a file, or an earlier copy, is damaged.
        """
        if "://" not in url:
            return _open_whole(Path(url))
        name = url.partition("?")[0].rpartition("/")[2]
        file = Path(self.options.cache) / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
        try:
            stream = _open_whole(file)
        except FileNotFoundError:
            return self._fetch(url, file)
        os.utime(stream.fileno())  # it is the most recently used now
        return stream

    def _fetch(self, url: str, file: Path) -> BinaryIO:
        """Download a shard, with retries."""
        file.parent.mkdir(parents=True, exist_ok=True)
        make_room(file.parent, self.options.cache_gb)
        pause = 1.0
        for left in range(self.options.retries, -1, -1):
            try:
                return self._download(url, file)
            except FileNotFoundError as error:
                raise OSError("there is no such shard") from error
            except Exception as error:  # every file system of fsspec raises errors of its own
                if not left:
                    raise OSError(f"it cannot be fetched: {first_line(error) or type(error).__name__}") from error
                time.sleep(pause * PAUSES.random())
                pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable")

    def _download(self, url: str, file: Path) -> BinaryIO:
        """Copy an address to a file that appears when it is complete, and open it; the tar's end is also checked."""
        temporary = draft_path(file)
        try:
            system, path = _open_system(url, self.options.timeout_seconds)
            system.get_file(path, str(temporary))
            stream = _open_whole(temporary)
            os.replace(temporary, file)
            return stream
        finally:
            temporary.unlink(missing_ok=True)


def make_room(folder: Path, gigabytes: float) -> None:
    """Remove the least recently used copies of shards until a folder has at most `gigabytes` of them.

    Other files are left alone, and copies that another process removes meanwhile are as good as removed.
    """
    copies: list[tuple[float, int, Path]] = []
    for file in folder.iterdir():
        if COPY.match(file.name):
            with suppress(FileNotFoundError):
                found = file.stat()
                copies.append((found.st_mtime, found.st_size, file))
    excess = sum(size for _, size, _ in copies) - gigabytes * 1e9
    for _, size, file in sorted(copies):
        if excess <= 0:
            return
        file.unlink(missing_ok=True)
        excess -= size


def _open_whole(file: Path) -> BinaryIO:
    stream = file.open("rb")
    try:
        check_whole(stream)
    except BaseException:
        stream.close()
        raise
    return stream


def check_whole(shard: BinaryIO) -> None:
    """Check an open shard's members and its end, and rewind it. Raises UnreadableShardError."""
    _, end = read_members(shard)
    if os.fstat(shard.fileno()).st_size < end + 2 * tarfile.BLOCKSIZE:
        raise UnreadableShardError(f"it breaks off after byte {end:,}")
    shard.seek(0)


def _open_system(url: str, seconds: float) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it; `seconds` without a byte are an error."""
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True}  # its threads do not survive a fork
    if url.startswith(("http://", "https://")):
        import aiohttp

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(sock_connect=seconds, sock_read=seconds)}
    elif url.startswith("s3://"):
        options["config_kwargs"] = {"connect_timeout": seconds, "read_timeout": seconds}
    return fsspec.url_to_fs(url, **options)
