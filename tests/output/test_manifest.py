"""manifest.json."""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.errors import UserError
from storydiffusion.output.manifest import (
    Manifest,
    PanelRecord,
    VideoRecord,
    installed_versions,
    read_manifest,
    write_manifest,
)

PANEL = PanelRecord("panels/001.png", "a cat", "", "雪 & “quotes”\n", 2**32 - 1, "ab" * 32)
MANIFEST = Manifest(
    title="A tale",
    model="miniature",
    origin="miniature",
    config={"seed": 3, "csa": {"rate": 0.5, "steps": [1, 2], "anchor_panels": None}},
    panels=(PANEL, replace(PANEL, file="panels/002.png")),
    versions={"torch": "2.11"},
    weights={"unet/diffusion_pytorch_model.safetensors": "cd" * 32},
    seconds={"panels": 1.25},
    video=VideoRecord("video.mp4", {"frames": 8, "boundary_frames": "clamped"}, {"predictor": "ef" * 32}, "01" * 32),
    complete=True,
)


@pytest.mark.parametrize("manifest", [MANIFEST, Manifest("T", "sd15", "pretrained", {})])
def test_round_trip(tmp_path: Path, manifest: Manifest):
    write_manifest(tmp_path / "manifest.json", manifest)
    assert read_manifest(tmp_path / "manifest.json") == manifest


def changed(**keys: object) -> str:
    return json.dumps({**json.loads(VALID), **keys})


VALID = json.dumps(
    {
        "format": 2,
        **{name: getattr(MANIFEST, name) for name in ("title", "model", "origin", "config", "complete")},
        **{name: getattr(MANIFEST, name) for name in ("versions", "weights", "seconds")},
        "panels": [vars(PANEL)],
        "video": vars(MANIFEST.video),
    }
)
BAD = {
    "cut off": VALID[:-20],
    "empty": "",
    "a list": "[]",
    "other format": changed(format=1),
    "unknown key": changed(extra=1),
    "wrong type": changed(config=[]),
    "video no mapping": changed(video="video.mp4"),
    "video without a file": changed(video={"settings": {}, "weights": {}, "sha256": ""}),
    "no word of a video": json.dumps({k: v for k, v in json.loads(VALID).items() if k != "video"}),
    "unknown origin": changed(origin="elsewhere"),
    "panels no list": changed(panels="x"),
    "panel no mapping": changed(panels=["x"]),
    "panel without seed": changed(panels=[{k: v for k, v in vars(PANEL).items() if k != "seed"}]),
    "panel with a wrong seed": changed(panels=[{**vars(PANEL), "seed": "1"}]),
    "panel with a large seed": changed(panels=[{**vars(PANEL), "seed": 10**400}]),
    "panel with a seed that is not an integer": changed(panels=[{**vars(PANEL), "seed": True}]),
    "panel outside the folder": changed(panels=[{**vars(PANEL), "file": "../panels/001.png"}]),
    "panel of the system": changed(panels=[{**vars(PANEL), "file": "/etc/passwd"}]),
    "panel without a name": changed(panels=[{**vars(PANEL), "file": ""}]),
    "panel with a NUL in its name": changed(panels=[{**vars(PANEL), "file": "a\0.png"}]),
    "video outside the folder": changed(video={**vars(MANIFEST.video), "file": "a/../../video.mp4"}),
    "seconds that are not numbers": changed(seconds={"panels": "1"}),
    "seconds that are not finite": changed(seconds={"panels": float("nan")}),
    "weights that are not text": changed(weights={"unet": 1}),
    "deep": "[" * 100_000,
    "a deep configuration": VALID.replace('"config": {', '"config": {"a": ' + "[" * 70 + "]" * 70 + ", "),
    "half a surrogate pair": changed(title="\ud800"),
    "a key twice": VALID.replace("{", '{"title": "", ', 1),
}


def test_the_video_is_optional(tmp_path: Path):
    (tmp_path / "m.json").write_text(changed(video=None))
    assert read_manifest(tmp_path / "m.json").video is None


def test_a_valid_manifest_is_read(tmp_path: Path):
    (tmp_path / "m.json").write_text(VALID)
    assert read_manifest(tmp_path / "m.json") == replace(MANIFEST, panels=(PANEL,))


@pytest.mark.parametrize("case", BAD)
def test_damaged_manifests_are_refused_in_one_sentence(tmp_path: Path, case: str):
    file = tmp_path / "m.json"
    file.write_text(BAD[case])
    with pytest.raises(UserError) as refusal:
        read_manifest(file)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def check_sentence(error: UserError) -> None:
    assert len(str(error).splitlines()) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=8,
)


def some_of(valid: str) -> st.SearchStrategy[dict[str, object]]:
    """Return mappings with the keys of `valid`, whose values are those or any."""
    return st.fixed_dictionaries({name: st.just(value) | VALUES for name, value in json.loads(valid).items()})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    some_of(VALID)
    | some_of(json.dumps(vars(PANEL))).map(lambda panel: {**json.loads(VALID), "panels": [panel]})
    | some_of(json.dumps(vars(MANIFEST.video))).map(lambda video: {**json.loads(VALID), "video": video})
    | VALUES
)
def test_any_manifest_is_read_or_refused_in_one_sentence(content: object):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        try:
            found = read_manifest(file)
        except UserError as error:
            check_sentence(error)
            return
        write_manifest(file, found)
        assert read_manifest(file) == found


def test_a_missing_manifest_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        read_manifest(tmp_path / "m.json")


def test_an_unknown_origin_is_refused():
    with pytest.raises(ValueError, match="elsewhere"):
        replace(MANIFEST, origin="elsewhere")


def test_versions_are_read_without_imports():
    found = installed_versions(("torch", "no-such-package"))
    assert found == {"python": sys.version.split()[0], "torch": version("torch")}
    code = (
        "import sys; from storydiffusion.output.manifest import installed_versions as v;"
        "assert 'torch' in v(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
