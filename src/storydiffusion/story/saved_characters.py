"""Saved characters of a story: their files, and what the story must share with the stories that they come from.

A run folder keeps a copy of each file, characters/CHECKSUM.safetensors, so that it has all that its story needs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.story.character_file import CharacterFile, read_character
from storydiffusion.story.script import Story

SHOWN_WEIGHTS = 12  # digits of a checksum
KEPT_DIGITS = 16  # of that of a file, in its name


def read_characters(story: Story) -> dict[str, CharacterFile]:
    """Return the character files of a story, by the name of the character in it. Raises UserError."""
    return {each.name: read_character(each.file) for each in story.characters if each.file is not None}


def find_kept_file(run: Path, sha256: str) -> Path:
    """Return where a run folder keeps the character file of this checksum."""
    return run / "characters" / f"{sha256[:KEPT_DIGITS]}.safetensors"


def keep_files(story: Story, run: Path) -> None:
    """Copy the character files of a story into its run folder, those that are not there yet."""
    for character in story.characters:
        if character.file is not None:
            kept = find_kept_file(run, compute_sha256(character.file))
            if not kept.exists():
                write_atomically(kept, Path(character.file).read_bytes())


def check_characters(
    files: Mapping[str, CharacterFile], model: str, weights: Mapping[str, str], settings: Mapping[str, Any]
) -> None:
    """Check that every file was saved with this model and these settings.

    Raises:
        UserError: another model, by name; other weights; or another setting.
    """
    for file in files.values():
        _check_model(file, model, weights)
        _check_settings(file, settings)


def describe_settings(sampling: Mapping[str, Any], model: Mapping[str, Any], csa: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the features of a story's images depend on beside weights, prompts and seeds; plain data.

    Args:
        sampling: `steps`, `guidance_scale`, `height` and `width`.
        model: the fields of its configuration.
        csa: those of consistent self-attention.
    """
    described = {name: sampling[name] for name in ("steps", "guidance_scale", "height", "width")}
    changes = ("scheduler", "guidance_rescale", "guidance_start", "clip_skip", "freeu")
    described |= {f"model.{name}": model[name] for name in changes}
    described["model.lora"] = list((model["lora"] or {}).values())
    described["model.textual_inversion"] = sorted(model["textual_inversion"] or {})
    sharing = {f"csa.{name}": value for name, value in csa.items() if name not in ("seed", "panels_at_once")}
    return json.loads(json.dumps(described | sharing))


def _check_model(file: CharacterFile, model: str, weights: Mapping[str, str]) -> None:
    saved = file.story
    if differing := sorted(n for n in {**saved.weights, **weights} if saved.weights.get(n) != weights.get(n)):
        if saved.model != model:
            raise UserError(
                f"{file.path} was saved with the model {saved.model}, not {model}: generate the story with "
                f"model={saved.model}, or save the character with {model}"
            )
        first = differing[0]
        raise UserError(
            f"{file.path} was saved with other weights of the model {model}: {first} has the checksum "
            f"{weights.get(first, 'none')[:SHOWN_WEIGHTS]}, not {saved.weights.get(first, 'none')[:SHOWN_WEIGHTS]}; "
            "load the weights it was saved with, or save the character again"
        )


def _check_settings(file: CharacterFile, settings: Mapping[str, Any]) -> None:
    for name in {**file.story.settings, **settings}:
        before, after = file.story.settings.get(name), settings.get(name)
        if before != after:
            raise UserError(
                f"{file.path} was saved with {name}={_show(before)}, but this story has {name}={_show(after)}: "
                f"set {name}={_show(before)}, or save the character with the settings of this story"
            )


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
