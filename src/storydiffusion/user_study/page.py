"""study.html: a blind pairwise study in one file that needs no network, and names no method.

The page has opaque names for what it shows; what they stand for is returned beside it, and kept elsewhere.
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

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from tqdm import tqdm

from storydiffusion.errors import UserError, first_line
from storydiffusion.story.given_images import read_image
from storydiffusion.user_study.files import Comparison, Key

Kind = Literal["images", "video"]

PLAYED = {"h264": "mp4", "av1": "mp4", "vp9": "webm", "vp8": "webm"}  # codecs that browsers play, and where they lie
TITLES = {"images": "Comparing pictures", "video": "Comparing videos"}


@dataclass(frozen=True)
class StudyItem:
    """What every method made of one thing: `text` is what was to be shown, a line a picture, and may be empty."""

    name: str
    text: tuple[str, ...]
    media: Mapping[str, tuple[Path, ...]]  # method → its pictures, or its one video


@dataclass(frozen=True)
class StudyPage:
    """The page as HTML, and the key of what it asks."""

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
    """Asks every question of every item and every two methods; the same arguments make the same page.

    Pictures are embedded without loss, scaled down to `largest_side` pixels, videos as they are encoded; of what else
    their files say (names, prompts, settings) nothing but a picture's colour profile is kept. `questions` maps names to
    wordings.

    Raises UserError for a picture or a video that cannot be read, or that no browser plays.
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
    environment = Environment(
        loader=PackageLoader("storydiffusion.user_study"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("study.html.j2").render(
        study=study,
        title=title,
        kind=study["kind"],
        asked=min(study["per_person"], len(study["comparisons"])),
        has_text=any(study["texts"].values()),
    )


def _embed(file: Path, kind: Kind, largest_side: int) -> str:
    return _picture(file, largest_side) if kind == "images" else _video(file)


def _picture(file: Path, largest_side: int) -> str:
    picture = read_image(file)
    picture.thumbnail((largest_side, largest_side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(buffer, "WEBP", lossless=True)
    return _data_uri("image/webp", buffer.getvalue())


def _video(file: Path) -> str:
    """The packets of the file's video, in a container of their own: no names, comments or sound."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(file.absolute()), metadata_errors="replace") as source:
            if not source.streams.video:
                raise UserError(f"{file} holds no video: give a video file")
            stream = source.streams.video[0]
            codec = stream.codec_context.name
            if codec not in PLAYED:
                raise UserError(f"no browser plays {file}, which is {codec}: convert it to H.264 in an .mp4 file")
            form = PLAYED[codec]
            buffer = BytesIO()
            with av.open(buffer, "w", format=form) as target:
                copy = target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:  # the last one, which is empty, has none
                        packet.stream = copy
                        target.mux(packet)
    except (OSError, FFmpegError) as error:
        raise UserError(f"cannot read the video {file}: {first_line(error)}; give an .mp4 or .webm file") from error
    return _data_uri(f"video/{form}", buffer.getvalue())


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
