"""Headers of tars from anywhere: each is read, or refused with one sentence that names the shard."""

import io
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.data.shard_index import index_shards, write_index
from storydiffusion.data.shard_members import UnreadableShardError
from storydiffusion.data.shards import IndexRecord, find_shards, read_summary
from storydiffusion.errors import UserError
from tests.helpers.videos import write_shard

BLOCK = tarfile.BLOCKSIZE
END = b"\0" * 2 * BLOCK


def pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % BLOCK)


def header(name: str, size: int | bytes = 0, kind: bytes = b"0") -> bytes:
    """Return a header with a correct checksum; `size` may be the raw 12 bytes of its field."""
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    return sign(data)


def sign(data: bytes | bytearray) -> bytes:
    data = bytearray(data)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def sample(key: str = "k") -> bytes:
    return b"".join(header(f"{key}.{extension}", 3) + pad(b"abc") for extension in ("mp4", "txt"))


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header("pax", len(records), kind) + pad(records)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


BAD_HEADERS = {
    "3,000 long names for one member": (header("././@LongLink", 1, b"L") + pad(b"a")) * 3000 + sample(),
    "3,000 long links": (header("././@LongLink", 1, b"K") + pad(b"a")) * 3000 + sample(),
    "3,000 PAX headers": pax(record(b"comment", b"x")) * 3000 + sample(),
    "a long name of terabytes": header("././@LongLink", b"\x80\0\0\0\0\0\1\0\0\0\0\0", b"L") + pad(b"a") + sample(),
    "a PAX header of terabytes": header("pax", b"\x80\0\0\0\0\0\1\0\0\0\0\0", b"x") + pad(b"a") + sample(),
    "a size of 2^80": header("k.mp4", b"\x80\0\1" + b"\0" * 9) + pad(b"abc") + sample(),
    "a size of −2^80": header("k.mp4", b"\xff\xff\1" + b"\0" * 9) + pad(b"abc") + sample(),
    "a PAX size of 2^80": pax(record(b"size", str(2**80).encode())) + sample(),
    "a negative PAX size": pax(record(b"size", b"-4096")) + sample(),
    "a PAX size of 5,000 digits": pax(record(b"size", b"9" * 5000)) + sample(),
    "a PAX record of no length": pax(b"0 path=x\n") + sample(),
    "a PAX header of digits alone": pax(b"1" * 60_000) + sample(),
    "a sparse map of words": pax(record(b"GNU.sparse.map", b"a,b") + record(b"GNU.sparse.size", b"x")) + sample(),
    "a sparse map that never ends": pax(
        record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0") + record(b"GNU.sparse.realsize", b"9")
    )
    + sample(),
    "a sparse header": header("k.mp4", 3, b"S") + pad(b"abc") + sample("l"),
    "an unknown character set": pax(record(b"hdrcharset", b"KOI-7") + record(b"path", b"\xff.mp4")) + sample(),
}


@pytest.mark.parametrize("data", BAD_HEADERS.values(), ids=list(BAD_HEADERS))
def test_a_bad_header_is_refused_by_name_and_the_other_shards_are_indexed(tmp_path, data):
    for name in ("a.tar", "z.tar"):
        write_shard(tmp_path / name, ["k"], b"abc")
    (tmp_path / "bad.tar").write_bytes(data + END)
    with pytest.raises(
        UserError, match=r"^1 of 3 shards cannot be used: \S+/bad\.tar: it .*or leave them out$"
    ) as error:
        index_shards(find_shards(str(tmp_path)), workers=1)
    assert len(str(error.value)) < 400
    assert set(read_summary(tmp_path)) == {"a.tar", "z.tar"}


def test_every_bad_shard_is_named(tmp_path):
    for number, data in enumerate(BAD_HEADERS.values()):
        (tmp_path / f"{number}.tar").write_bytes(data + END)
    with pytest.raises(UserError, match=f"^{len(BAD_HEADERS)} of {len(BAD_HEADERS)} shards") as error:
        index_shards(find_shards(str(tmp_path)))
    assert all(f"{tmp_path}/{number}.tar: it " in str(error.value) for number in range(len(BAD_HEADERS)))


numbers = st.one_of(
    st.integers(0, 2**33).map(lambda number: b"%011o\0" % number if number < 8**11 else b"77777777777\0"),
    st.binary(min_size=12, max_size=12),
)
kinds = st.sampled_from([b"\0", *(bytes([letter]) for letter in b"01234567DKLMNSVXgxZ")])
keys = st.sampled_from(
    [b"path", b"size", b"linkpath", b"mtime", b"uid", b"hdrcharset", b"comment", b"GNU.sparse.map", b"GNU.sparse.size",
     b"GNU.sparse.name", b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.offset", b"GNU.sparse.numblocks"]
)  # fmt: skip
values = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"0", b"1", b"-1", b"1e999", b"nan", b"9" * 30, b"0,1,2", b"BINARY", b"k.mp4", b"", b"\xd9\xa3"]),
)
records = st.lists(st.one_of(st.builds(record, keys, values), st.binary(max_size=60)), max_size=5).map(b"".join)
names = st.one_of(st.sampled_from(["k.mp4", "k.txt", "././@LongLink", "x/", "a" * 99]), st.text("ab./~é", max_size=12))
pieces = st.one_of(
    st.builds(pax, records, st.sampled_from([b"x", b"g", b"X"])),
    st.builds(header, names, st.one_of(numbers, st.integers(0, 2048)), kinds),
    st.binary(max_size=600).map(pad),
    st.builds(sample, st.sampled_from(["k", "l"])),
    st.just(END),
)
scratches = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.booleans()), max_size=8)


@settings(max_examples=500, derandomize=True, deadline=None)
@given(st.lists(pieces, max_size=6), scratches, st.floats(0, 1))
def test_any_headers_are_read_or_refused(tmp_path_factory, parts, scratches, cut):
    """Of shards of made-up headers, some bytes changed (some with the checksum that then fits), some cut off."""
    data = bytearray(b"".join(parts) + END)
    for place, value, signed in scratches:
        at = int(place * len(data))
        data[at] = value
        if signed:
            start = at - at % BLOCK
            data[start : start + BLOCK] = sign(data[start : start + BLOCK])
    shard = tmp_path_factory.getbasetemp() / "fuzz.tar"
    shard.write_bytes(data[: int(cut * 1.5 * len(data)) + 1])
    with suppress(UnreadableShardError):
        assert isinstance(write_index(shard), IndexRecord)


def test_made_up_shards_are_also_read(tmp_path: Path):
    """The strategies above build shards that are valid where nothing is changed."""
    (tmp_path / "0.tar").write_bytes(
        pax(record(b"comment", b"x")) + sample() + header("x/", 0, b"5") + sample("l") + END
    )
    assert write_index(tmp_path / "0.tar").samples == 2
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "0.tar").read_bytes())) as tar:
        assert tar.getnames() == ["k.mp4", "k.txt", "x", "l.mp4", "l.txt"]
