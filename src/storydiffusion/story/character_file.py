"""Character files: all that later stories need to draw a saved character again.

A file is a safetensors file with the starting noise of the images of the story that the character comes from; its
metadata is JSON with their prompts, what they read of each other, and the settings and weights that they were generated
with. A later story computes these images again beside its own panels, which read their features.

Shape letters: R images, C latent channels, h × w latents.
"""

import hashlib
import json
import math
import stat
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.errors import UserError
from storydiffusion.files.json_file import build, parse_object

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
NOISE = "noise"
SUFFIX = ".safetensors"
LARGEST = 50 * 2**20  # bytes


@dataclass(frozen=True)
class SavedImage:
    """One image of the story that a character comes from.

    `panel` counts from 0, `characters` are those of its prompt, and `images` the numbers in the file of the images that
    it saw as the story's panels, itself in its own place; -1 for a panel whose features do not reach the character.
    """

    panel: int
    prompt: str
    negative_prompt: str
    seed: int
    characters: tuple[str, ...]
    images: tuple[int, ...]


@dataclass(frozen=True)
class SavedStory:
    """The story that a character comes from: all that its features are computed from, but the noise.

    `settings` are plain data that another story must share, `seed` is that of the draws of consistent self-attention,
    and `windows` the number of windows of the text encoder in which its prompts were encoded.
    """

    model: str
    weights: dict[str, str]
    settings: dict[str, Any]
    seed: int
    windows: int
    images: tuple[SavedImage, ...]


@dataclass(frozen=True)
class SavedCharacter:
    """A character and its story; `reads` are the images that show the character, which later stories read."""

    name: str
    description: str
    reads: tuple[int, ...]
    story: SavedStory


@dataclass(frozen=True)
class CharacterFile:
    """A character with the starting noise of its story's images, (R, C, h, w), float32 in bytes."""

    character: SavedCharacter
    shape: tuple[int, ...]
    noise: bytes
    path: str = ""

    @property
    def story(self) -> SavedStory:
        """The story that the character comes from."""
        return self.character.story

    @cached_property
    def story_key(self) -> str:
        """A digest of the story and its noise, equal for all characters saved from one story."""
        return _digest(json.dumps(asdict(self.story), sort_keys=True), self.noise)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the content of the file, the same for equal characters.

        Raises:
            UserError: for more than LARGEST bytes.
        """
        text = json.dumps({"format": FORMAT, **asdict(self.character)}, ensure_ascii=False)
        metadata = {"character": text, "sha256": _digest(text, self.noise)}
        header = json.dumps({"__metadata__": metadata, NOISE: _describe_noise(self.shape, self.noise)}).encode()
        header += b" " * (-len(header) % 8)
        data = struct.pack("<Q", len(header)) + header + self.noise
        if len(data) > LARGEST:
            raise UserError(
                f"the {len(self.story.images)} images of {self.character.name} make a file of {len(data):,} bytes, "
                f"more than {LARGEST:,}: save the character from a shorter story"
            )
        return data

    def load_noise(self) -> "Tensor":
        """Return the starting noise, (R, C, h, w)."""
        import torch

        return torch.frombuffer(bytearray(self.noise), dtype=torch.float32).reshape(self.shape)


def read_character(path: str | Path) -> CharacterFile:
    """Read a character file.

    Raises:
        UserError: a file that is missing, damaged, or no character file.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # reading a FIFO or device may never end
            raise OSError("not a regular file")
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(
            f"cannot read the character file {path}: {(error.strerror or str(error)).lower()}; correct its path, or "
            "save the character with storydiffusion save-character"
        ) from None
    try:
        return replace(_parse(data), path=str(path))
    except ValueError as error:
        raise UserError(
            f"{path} is not a character file, or damaged ({error}): save the character again with storydiffusion "
            "save-character"
        ) from None


def _parse(data: bytes) -> CharacterFile:
    """Return the character in a file's content. Raises ValueError with the reason."""
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST:,} bytes")
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < length <= len(data) - 8:
        raise ValueError("its header is cut short")
    header, noise = parse_object(data[8 : 8 + length].decode()), data[8 + length :]
    metadata, entry = header.get("__metadata__"), header.get(NOISE)
    if len(header) != 2 or not isinstance(entry, dict) or not isinstance(metadata, dict):
        raise ValueError("it holds no character")
    text = metadata.get("character")
    if not isinstance(text, str) or metadata != {"character": text, "sha256": _digest(text, noise)}:
        raise ValueError("its content does not match its checksum")
    content = parse_object(text)
    if content.pop("format", None) != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int for side in shape):
        raise ValueError("its noise has no shape")
    if entry != _describe_noise(shape, noise):
        raise ValueError("its noise is not one float32 tensor")
    found = CharacterFile(build(SavedCharacter, content), tuple(shape), noise)
    _check(found)
    return found


def _check(file: CharacterFile) -> None:
    """Check that the numbers of images fit each other and the noise. Raises ValueError."""
    images = file.story.images
    size = math.prod(file.shape, start=4)  # bytes
    if len(file.shape) != 4 or file.shape[0] != len(images) or size != len(file.noise):
        raise ValueError(f"its noise does not have the shape {list(file.shape)} of {len(images)} images")
    seen = [*file.character.reads, *(number for image in images for number in image.images)]
    if not file.character.reads or min(file.character.reads) < 0 or not all(-1 <= n < len(images) for n in seen):
        raise ValueError("it names images that it does not hold")
    if not all(image.images[image.panel : image.panel + 1] == (n,) for n, image in enumerate(images)):
        raise ValueError("an image is not in its own place")


def _describe_noise(shape: Sequence[int], noise: bytes) -> dict[str, Any]:
    """Return the header's entry of the tensor, in safetensors' format."""
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [0, len(noise)]}


def _digest(text: str, noise: bytes) -> str:
    return hashlib.sha256(text.encode() + noise).hexdigest()
