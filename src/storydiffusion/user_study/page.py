"""study.html: a blind pairwise study in one self-contained file that names no method.

The page uses opaque names; `study_page` returns the key to them separately.
"""

import base64
import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from storydiffusion.errors import UserError, first_line
from storydiffusion.output.html_page import render_page
from storydiffusion.story.given_images import read_image
from storydiffusion.user_study.files import Comparison, Key

Kind = Literal["images", "video"]

PLAYED = {"h264": "mp4", "av1": "mp4", "vp9": "webm", "vp8": "webm"}  # codecs that browsers play → container
TITLES = {"images": "Comparing images", "video": "Comparing videos"}


@dataclass(frozen=True)
class StudyItem:
    """The outputs of every method for one item; `text` is the prompt of each image, () where unknown."""

    name: str
    text: tuple[str, ...]
    media: Mapping[str, tuple[Path, ...]]  # method → its images, or its one video


@dataclass(frozen=True)
class StudyPage:
    """The page as HTML, and its key."""

    html: str
    key: Key


def study_page(
    items: Sequence[StudyItem],
    kind: Kind,
    questions: Mapping[str, str],
    per_person: int,
    title: str | None = None,
    largest_side: int = 512,
    seed: int = 0,
) -> StudyPage:
    """Build a study that asks every question about every item and pair of methods; deterministic in its arguments.

    Images are scaled down to `largest_side` pixels and embedded losslessly; videos keep their encoding. Other metadata
    of the files (names, prompts, settings) is dropped, except an image's color profile. `questions` maps names to
    wordings.

    Raises UserError for an image or video that cannot be read, or a video that no browser plays.
    """
    draw = random.Random(seed)
    names, comparisons = {}, {}
    for item in items:
        for method in item.media:
            names[item.name, method] = _opaque(draw)
    asked = []
    texts = {item.name: _opaque(draw) for item in items}
    pairs = [draw.sample(pair, 2) for pair in itertools.combinations(items[0].media, 2)]
    for group, ((first, second), question) in enumerate(itertools.product(pairs, questions)):
        for item in items:
            identity = _opaque(draw)
            comparisons[identity] = Comparison(item.name, question, first, second)
            asked.append(
                {
                    "id": identity,
                    "group": group,
                    "question": question,
                    "text": texts[item.name],
                    "first": names[item.name, first],
                    "second": names[item.name, second],
                }
            )
    embedded = {
        names[item.name, method]: [_embed(file, kind, largest_side) for file in files]
        for item in tqdm(items, "embedding", unit="item")
        for method, files in item.media.items()
    }
    content = {
        "kind": kind,
        "per_person": per_person,
        "questions": dict(questions),
        "texts": {texts[item.name]: list(item.text) for item in items},
        "media": dict(sorted(embedded.items())),
        "comparisons": sorted(asked, key=lambda one: one["id"]),
    }
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    html = _render({"study": checksum, **content}, title or TITLES[kind])
    return StudyPage(html, Key(checksum, per_person, list(items[0].media), dict(questions), comparisons))


def _opaque(draw: random.Random) -> str:
    return f"{draw.getrandbits(64):016x}"


def _render(study: Mapping[str, Any], title: str) -> str:
    return render_page(
        "storydiffusion.user_study",
        "study.html.j2",
        study=study,
        title=title,
        kind=study["kind"],
        asked=min(study["per_person"], len(study["comparisons"])),
        has_text=any(study["texts"].values()),
    )


def _embed(file: Path, kind: Kind, largest_side: int) -> str:
    return _embed_image(file, largest_side) if kind == "images" else _embed_video(file)


def _embed_image(file: Path, largest_side: int) -> str:
    image = read_image(file)
    image.thumbnail((largest_side, largest_side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return _data_uri("image/webp", buffer.getvalue())


def _embed_video(file: Path) -> str:
    """Remux the video packets of a file into a fresh container, without names, comments or sound."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(file.absolute()), metadata_errors="replace") as source:
            if not source.streams.video:
                raise UserError(f"{file} contains no video: give a video file")
            stream = source.streams.video[0]
            codec = stream.codec_context.name
            if codec not in PLAYED:
                raise UserError(f"browsers cannot play {file} ({codec}): convert it to H.264 in an .mp4 file")
            form = PLAYED[codec]
            buffer = BytesIO()
            with av.open(buffer, "w", format=form) as target:
                copy = target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:  # the last packet is empty and has none
                        packet.stream = copy
                        target.mux(packet)
    except (OSError, FFmpegError) as error:
        raise UserError(f"cannot read the video {file}: {first_line(error)}; give an .mp4 or .webm file") from error
    return _data_uri(f"video/{form}", buffer.getvalue())


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
