"""Character files: a round trip, damage of every kind, and stories that name them."""

import json
import os
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from storydiffusion.errors import UserError
from storydiffusion.story import Character, load_story
from storydiffusion.story.character_file import (
    LARGEST,
    CharacterFile,
    SavedCharacter,
    SavedImage,
    SavedStory,
    read_character,
)
from storydiffusion.story.saved_characters import check_characters, describe_settings, read_characters

IMAGES = (
    SavedImage(0, 'a "red" cat 猫 runs', "text", 11, ("Pip",), (0, -1, 1)),
    SavedImage(2, "a red cat reads", "", 22, ("Pip", "Bo"), (0, -1, 1)),
)
SETTINGS = {"steps": 3, "guidance_scale": 3.0, "csa.rate": {"2": 0.5}, "csa.tile_size": None}
STORY = SavedStory("tiny", {"unet/a.safetensors": "00ff"}, SETTINGS, 7, 1, IMAGES)
SHAPE = (2, 4, 3, 5)
NOISE = torch.arange(120.0).reshape(SHAPE)
FILE = CharacterFile(SavedCharacter("Pip", "a red cat", (0, 1), STORY), SHAPE, NOISE.numpy().tobytes())


@pytest.fixture
def pip(tmp_path) -> Path:
    file = tmp_path / "pip.safetensors"
    file.write_bytes(FILE.to_bytes())
    return file


def test_a_file_is_read_as_it_was_written(pip):
    found = read_character(pip)
    assert found == replace(FILE, path=str(pip))
    assert torch.equal(found.load_noise(), NOISE)
    assert found.to_bytes() == pip.read_bytes()
    assert found.story_key == replace(FILE, character=replace(FILE.character, name="Bo", reads=(1,))).story_key
    assert found.story_key != replace(FILE, noise=bytes(480)).story_key


def test_other_programs_read_it_as_safetensors(pip):
    assert torch.equal(load(pip.read_bytes())["noise"], NOISE)


def test_every_changed_or_missing_byte_is_noticed(pip):
    """Of the length, the header and the noise, at every third place."""
    data = pip.read_bytes()
    for place in range(0, len(data), 3):
        pip.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UserError, match="is not a character file, or damaged"):
            read_character(pip)
    for length in [*range(0, 40), *range(40, len(data), 37)]:
        pip.write_bytes(data[:length])
        with pytest.raises(UserError, match="is not a character file, or damaged"):
            read_character(pip)


def with_content(change, shape=SHAPE) -> bytes:
    """Return a file with a valid checksum whose JSON was changed."""
    content = json.loads(
        json.loads(FILE.to_bytes()[8:][: struct.unpack("<Q", FILE.to_bytes()[:8])[0]])["__metadata__"]["character"]
    )
    change(content)
    from storydiffusion.story.character_file import _digest

    text = json.dumps(content)
    metadata = {"character": text, "sha256": _digest(text, FILE.noise)}
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, len(FILE.noise)]}
    header = json.dumps({"__metadata__": metadata, "noise": entry}).encode()
    return struct.pack("<Q", len(header)) + header + FILE.noise


@pytest.mark.parametrize(
    ("change", "shape", "reason"),
    [
        (lambda c: c.update(format=2), SHAPE, "it is not of format 1"),
        (lambda c: c.update(reads=[2]), SHAPE, "it names images that it does not hold"),
        (lambda c: c.update(reads=[-1]), SHAPE, "it names images that it does not hold"),
        (lambda c: c.update(reads=[]), SHAPE, "it names images that it does not hold"),
        (lambda c: c["story"]["images"][0].update(images=[0, 5]), SHAPE, "it names images that it does not hold"),
        (lambda c: c["story"]["images"][1].update(panel=3), SHAPE, "an image is not in its own place"),
        (lambda c: c["story"]["images"][1].update(panel=-1), SHAPE, "an image is not in its own place"),
        (lambda c: c["story"].pop("seed"), SHAPE, "story.seed is missing"),
        (lambda c: c.update(more=1), SHAPE, "the key 'more' is unknown"),
        (lambda c: None, (2, 4, 3, 4), "its noise does not have the shape"),
        (lambda c: None, (1, 8, 3, 5), "its noise does not have the shape"),
        (lambda c: None, (-2, -4, 3, 5), "its noise does not have the shape"),
        (lambda c: None, None, "its noise has no shape"),
        (lambda c: None, (True, 120, 1, 1), "its noise has no shape"),
    ],
)  # fmt: skip
def test_content_that_does_not_fit_is_refused(pip, change, shape, reason):
    pip.write_bytes(with_content(change, shape))
    with pytest.raises(UserError, match=f"{pip} is not a character file, or damaged \\({reason}"):
        read_character(pip)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 8, b"\xff" * 8, b"\xff" * 64, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}"]
)
def test_other_files_are_refused(pip, data):
    pip.write_bytes(data)
    with pytest.raises(UserError, match=f"{pip} is not a character file"):
        read_character(pip)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("missing", "no such file"), ("", "not a regular file"), ("fifo", "not a regular file")):
        with pytest.raises(UserError, match=f"cannot read the character file .*: {reason}"):
            read_character(tmp_path / name)


def test_a_file_is_never_larger_than_what_is_read(tmp_path):
    with pytest.raises(UserError, match=r"the 2 images of Pip make a file of .* bytes, more than"):
        replace(FILE, noise=bytes(LARGEST)).to_bytes()


def write(folder: Path, characters: str) -> Path:
    file = folder / "story.yaml"
    file.write_text(f'title: T\ncharacters: {characters}\npanels:\n  - prompt: "[Mo] runs"\n')
    return file


def test_a_story_names_a_file_relative_to_its_folder(pip, monkeypatch, tmp_path):
    (tmp_path / "stories").mkdir()
    monkeypatch.chdir("/")
    story = load_story(write(tmp_path / "stories", "{Mo: {file: ../pip.safetensors}}"))
    assert story.characters == (Character("Mo", "a red cat", str(tmp_path / "stories" / ".." / "pip.safetensors")),)
    assert read_characters(story)["Mo"].character.name == "Pip"


@pytest.mark.parametrize(
    ("characters", "sentence"),
    [
        ("{Mo: {file: gone.safetensors}}", "cannot read the character file .*gone.safetensors: no such file"),
        ("{Mo: {file: story.yaml}}", "story.yaml is not a character file"),
        ("{Mo: {file: 3}}", "the file of 'Mo' must be text, not '3'"),
        ("{Mo: {files: a}}", "the character 'Mo': 'files' is not a valid key: use file"),
        ("{Mo: {}}", "the character 'Mo' has no 'file': add it"),
        ("{Mo: [a]}", "the description of 'Mo' must be text"),
    ],
)
def test_wrong_files_of_a_story_are_refused(tmp_path, characters, sentence):
    with pytest.raises(UserError, match=sentence):
        load_story(write(tmp_path, characters))


@pytest.mark.parametrize(
    ("model", "weights", "settings", "sentence"),
    [
        ("other", {"unet/a.safetensors": "aa"}, {}, "x was saved with the model tiny, not other: generate"),
        ("tiny", {"unet/a.safetensors": "aa"}, {}, "x was saved with other weights of the model tiny: unet/a.safet"),
        ("tiny", {**STORY.weights, "lora": "aa"}, {}, "lora has the checksum aa, not none"),
        ("tiny", {}, {}, "unet/a.safetensors has the checksum none, not 00ff"),
        ("tiny", STORY.weights, {"steps": 4}, "x was saved with steps=3, but this story has steps=4: set steps=3"),
        ("tiny", STORY.weights, {"csa.rate": 0.5}, 'with csa.rate={"2": 0.5}, but this story has csa.rate=0.5'),
        ("tiny", STORY.weights, {"new": "a"}, "with new=null, but this story has new=a"),
    ],
)  # fmt: skip
def test_another_model_or_setting_is_refused_by_name(model, weights, settings, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_characters({"Mo": replace(FILE, path="x")}, model, weights, {**SETTINGS, **settings})


def test_the_same_model_under_another_name_is_taken():
    check_characters({"Mo": FILE}, "my_tiny", STORY.weights, SETTINGS)


def test_settings_are_the_same_for_files_at_other_places():
    model = {"scheduler": "ddim", "guidance_rescale": 0.0, "guidance_start": 0.0, "clip_skip": None, "freeu": None}
    model |= {"lora": {"a/x": 0.5}, "textual_inversion": {"toy": "a/y"}}
    moved = model | {"lora": {"b/x": 0.5}, "textual_inversion": {"toy": "b/y"}}
    sampling = {"steps": 3, "guidance_scale": 3.0, "height": 64, "width": 64}
    first = describe_settings(sampling, model, {"rate": {2: 0.5}, "seed": 1, "panels_at_once": 2})
    assert first == describe_settings(sampling, moved, {"rate": {2: 0.5}, "seed": 5, "panels_at_once": None})
    assert first != describe_settings(sampling, {**model, "lora": {"a/x": 0.6}}, {"rate": {2: 0.5}})
    assert first["csa.rate"] == {"2": 0.5}
