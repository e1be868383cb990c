"""Differences between manifests, named as a user would."""

from dataclasses import replace
from typing import Any

import pytest

from storydiffusion.output.differences import find_differences
from storydiffusion.output.manifest import Manifest, VideoRecord


def panel(prompt: str, caption: str = "", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "caption": caption, "characters": ("Mia",), **more}


def story(*panels: dict[str, Any], **changes: Any) -> Manifest:
    script = {
        "title": "Tale",
        "characters": [{"name": "Mia", "description": "a girl"}],
        "panels": list(panels),
        "style": "(No style)",
        "images": [],
    }
    settings = {"seed": 1, "csa": {"rate": 0.5, "variant": "eq2"}, "run_dir": "a", "overwrite": False}
    return Manifest("Tale", "tiny", "random", {**settings, "script": {**script, **changes}}, weights={"unet": "ab"})


A, B, C, D = (panel(f"[Mia] {verb}", f"she {verb}") for verb in ("runs", "sits", "waves", "jumps"))
BASE = story(A, B, C)
CASES = {
    "nothing": (BASE, []),
    "another place": (replace(BASE, config={**BASE.config, "run_dir": "b", "overwrite": True}), []),
    "caption": (story(A, {**B, "caption": "new"}, C), ['caption of panel 2: "she sits" → "new"']),
    "no caption": (story(A, {**B, "caption": ""}, C), ['caption of panel 2: "she sits" → none']),
    "prompt": (story(A, {**B, "prompt": "[Mia] naps"}, C), ['prompt of panel 2: "[Mia] sits" → "[Mia] naps"']),
    "seed and cut": (
        story(A, B, {**C, "seed": 7, "cut": True}),
        ["seed of panel 3: none → 7", "cut of panel 3: none → true"],
    ),
    "added": (story(A, B, D, C), ["panel 3 is new"]),
    "added at the end": (story(A, B, C, D), ["panel 4 is new"]),
    "removed": (story(A, C), ["panel 2 is removed"]),
    "moved": (story(C, A, B), ["panel 3 is now panel 1"]),
    "character": (
        story(A, B, C, characters=[{"name": "Mia", "description": "a cat"}]),
        ['description of Mia: "a girl" → "a cat"'],
    ),
    "another character": (
        story(A, B, C, characters=[{"name": "Bo", "description": "a cat"}]),
        ["Mia is removed", "Bo is a new character"],
    ),
    "style": (story(A, B, C, style="Comic book"), ['style: "(No style)" → "Comic book"']),
    "title": (replace(BASE, title="Other"), ['title: "Tale" → "Other"']),
    "settings": (
        replace(BASE, config={**BASE.config, "seed": 2, "csa": {"rate": 0.3, "variant": "eq2"}}),
        ["seed: 1 → 2", "csa.rate: 0.5 → 0.3"],
    ),
    "weights": (replace(BASE, weights={"unet": "cd"}), ["weights unet"]),
    "weights of the video": (replace(BASE, video=VideoRecord("v.mp4", {}, {"motion": "1"})), ["weights motion"]),
    "a default that the older manifest lacks": (story({**A, "seed": None, "negative": ""}, B, C), []),
}


@pytest.mark.parametrize("case", CASES)
def test_differences_are_named(case):
    after, expected = CASES[case]
    assert [str(each) for each in find_differences(BASE, after)] == expected


def test_zero_is_a_value():
    changed = replace(BASE, config={**BASE.config, "seed": 0})
    assert [str(each) for each in find_differences(BASE, changed)] == ["seed: 1 → 0"]
