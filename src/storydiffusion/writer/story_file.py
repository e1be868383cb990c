"""A written story on disk: story.yaml, to read and change, and story.writing.json, how it was written.

The record holds the request, the emotion's plan, the checksum of the story as written and every reply of a language
model, so that the same request gives the same story without a server. It never holds a key.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from storydiffusion.config.writer import ChatWriterConfig, WriterConfig
from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.bounded_yaml import parse_yaml
from storydiffusion.files.json_file import read_object
from storydiffusion.story import NO_STYLE, Character, Story, load_story, story_from_dict
from storydiffusion.writer import chat, rules  # noqa: F401  # register the writers
from storydiffusion.writer.brief import WRITERS, Brief, Draft

LINE = 110  # characters of a line of YAML


def format_story(story: Story, folder: Path | None = None) -> str:
    """Return a story as YAML that `load_story` reads as the same story.

    Args:
        folder: of the YAML file, with the story's character files in it; None: they are named as they are.

    Raises:
        UserError: a text that no YAML file can hold.
    """
    text = yaml.safe_dump(describe_story(story, folder), allow_unicode=True, sort_keys=False, width=LINE)
    if story_from_dict(parse_yaml(text, "the story"), "the story", folder=folder) != story:
        raise UserError("the story contains characters that a YAML file does not keep: change the idea or the seed")
    return text


def describe_story(story: Story, folder: Path | None = None) -> dict[str, Any]:
    """Return a story as plain data, without what has its default, as `story_from_dict` takes it from `folder`."""
    data: dict[str, Any] = {"title": story.title}
    if story.style != NO_STYLE.name:
        data["style"] = story.style
    if story.negative:
        data["negative"] = story.negative
    data["characters"] = {each.name: _describe_character(each, folder) for each in story.characters}
    data["panels"] = [
        {"prompt": panel.prompt, "caption": panel.caption}
        | ({"says": panel.says} if panel.says else {})
        | ({} if panel.cut is None else {"cut": panel.cut})
        | ({"negative": panel.negative} if panel.negative else {})
        | ({} if panel.seed is None else {"seed": panel.seed})
        | ({"pose": panel.pose} if panel.pose else {})
        | ({"place": panel.place} if panel.place else {})
        | ({"lock": panel.lock} if panel.lock else {})
        for panel in story.panels
    ]
    return data


def _describe_character(character: Character, folder: Path | None) -> str | dict[str, str]:
    if character.file is None:
        return character.description
    file = Path(character.file)
    return {"file": (file if folder is None else file.relative_to(folder)).as_posix()}


def write_or_read_story(file: Path, brief: Brief, writer: WriterConfig, overwrite: bool) -> tuple[Story, Draft | None]:
    """Return the story in `file`, with a draft if it was written now.

    An existing file of the same request is read as it is, changes included. One of another request is rewritten with
    `overwrite`, but never one that was changed by hand.

    Raises:
        UserError: no story could be written, or the file holds another one.
    """
    request, record = describe_request(brief, writer), read_record(file)
    if file.exists():
        if record.get("request") == request:
            return load_story(file), None
        if not overwrite:
            raise UserError(f"{file} was written for another request: choose another run_dir, or pass overwrite=true")
        if record.get("sha256") != _checksum(file.read_bytes()):
            raise UserError(
                f"{file} was changed by hand and is of another request: rename it or choose another run_dir"
            )
    elif not record and not overwrite and file.with_name("manifest.json").exists():
        raise UserError(f"{file.parent} contains another story: choose another run_dir, or pass overwrite=true")
    draft = write_story(file, brief, writer)
    return draft.story, draft


def write_story(file: Path, brief: Brief, config: WriterConfig) -> Draft:
    """Write a story and its record, from the replies that the record of the same request keeps, if there is one.

    Raises UserError; then nothing is written.
    """
    record = read_record(file)
    is_same = record.get("request") == describe_request(brief, config)
    written = compose_story(brief, config, record["replies"] if is_same else ())
    save_story(file, written)
    return written.draft


@dataclass(frozen=True)
class WrittenStory:
    """A story as written, and the content of its two files."""

    draft: Draft
    text: bytes
    record: bytes


def compose_story(brief: Brief, config: WriterConfig, kept: Sequence[Mapping[str, Any]] = ()) -> WrittenStory:
    """Return a new story, which may take minutes; `kept` are replies of an earlier run. Raises UserError."""
    writer = WRITERS[config.kind](config, kept)
    draft = writer.write(brief)
    text = f"{_header(brief, draft)}{format_story(draft.story)}".encode()
    record = {
        "request": describe_request(brief, config),
        "plan": asdict(draft.plan) if draft.plan else None,
        "notes": list(draft.notes),
        "sha256": _checksum(text),
        "replies": writer.kept_replies(),
    }
    return WrittenStory(draft, text, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def save_story(file: Path, written: WrittenStory) -> None:
    """Write the files of a story, its record first."""
    write_atomically(record_path(file), written.record)
    write_atomically(file, written.text)


def describe_request(brief: Brief, writer: WriterConfig) -> dict[str, Any]:
    """Return what a story depends on, as plain data: the brief, and the writer without its server's address."""
    asked = {name: getattr(brief, name) for name in ("idea", "emotion", "panels", "language", "seed")}
    settings = {"kind": writer.kind}
    if isinstance(writer, ChatWriterConfig):
        settings |= {"model": writer.model, "temperature": writer.temperature}
    return {**asked, "text": _checksum(brief.text.encode()), "target": brief.target.name, "writer": settings}


def record_path(file: Path) -> Path:
    """Return the path of a story's record."""
    return file.with_name(f"{file.stem}.writing.json")


def read_record(file: Path) -> Mapping[str, Any]:
    """Return the record of a story file, {} without one. Raises UserError for a damaged one."""
    path = record_path(file)
    if not path.exists():
        return {}
    try:
        record = read_object(path)
        replies = record.get("replies")
        if not isinstance(replies, list) or not all(_is_reply(reply) for reply in replies):
            raise ValueError("replies are not a list of replies")
        return record
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it") from None


def _is_reply(reply: Any) -> bool:
    return (
        isinstance(reply, dict)
        and reply.keys() == {"step", "request", "text"}
        and all(isinstance(reply[name], str) for name in ("step", "request"))
        and isinstance(reply["text"], str | None)
    )


def _header(brief: Brief, draft: Draft) -> str:
    """Return comments that say where the story is from."""
    source = f"the idea {brief.idea!r}" if brief.idea else "a text" if brief.text else "an emotion"
    lines = [f"Written from {source}, seed {brief.seed}, for {brief.target.name}. Change what you like."]
    if draft.plan is not None:
        lines.append(f"{draft.plan.emotion}: {draft.plan.theme}. {draft.plan.event}")
    printable = ("".join(char for char in line if char.isprintable()) for line in lines)
    return "".join(f"# {line}\n" for line in printable)


def _checksum(data: bytes) -> str:
    return sha256(data).hexdigest()
