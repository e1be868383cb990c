"""What is found in run folders and folders of images and videos, and what is refused there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.evaluation.inputs import ALL, find_images, find_runs, find_videos
from storydiffusion.files.atomic import write_image
from storydiffusion.output.film_strip import write_strip
from storydiffusion.output.manifest import Manifest, PanelRecord, VideoRecord, write_manifest
from storydiffusion.output.video_file import write_video

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 16, 32, 3), dtype=np.uint8)


def write_run(folder: Path, seed: int = 0, **changes: object) -> Manifest:
    """A run of three panels, Pip, Bo and both, with a transition to the second and a cut to the third."""
    panels = [PanelRecord(f"panels/00{i}.png", f"prompt {i}", "", "", i, "") for i in (1, 2, 3)]
    for panel, frame in zip(panels, FRAMES, strict=True):
        write_image(folder / panel.file, Image.fromarray(frame))
    write_strip(folder / "transitions" / "001-002.png", FRAMES[[0, 2, 1]], "key")
    script = [
        {"characters": who, "cut": cut} for who, cut in ((["Pip"], False), (["Bo"], False), (["Pip", "Bo"], True))
    ]
    config = {"seed": seed, "frames": None, "steps": 5, "script": {"panels": script}}
    video = VideoRecord("video.mp4", {"frames": 3}, {})
    manifest = Manifest("Two", "m", "miniature", config, tuple(panels), video=video, complete=True)
    manifest = replace(manifest, **changes)
    write_manifest(folder / "manifest.json", manifest)
    return manifest


def test_a_run_is_a_story_and_its_transitions(tmp_path):
    write_run(tmp_path)
    found = find_runs(tmp_path)
    (story,) = found.stories
    assert story == "Two (seed 0)"
    images = found.stories[story]
    assert [p.name for p in images] == [f"Two (seed 0) 00{i}" for i in (1, 2, 3)]
    assert [p.text for p in images] == ["prompt 1", "prompt 2", "prompt 3"]
    assert [p.characters for p in images] == [("Pip",), ("Bo",), ("Pip", "Bo")]
    np.testing.assert_array_equal(images[1].pixels(), FRAMES[1])
    (clip,) = found.clips
    assert clip.name == "Two (seed 0) 001-002"
    assert clip.boundary_frames is not None
    np.testing.assert_array_equal(clip.read(), FRAMES[[0, 2, 1]])
    np.testing.assert_array_equal(clip.boundary_frames(), FRAMES[:2])
    assert found.are_miniature
    assert found.settings[story]["steps"] == 5


def test_without_strips_the_video_is_one_clip_and_a_remark_says_so(tmp_path):
    write_run(tmp_path)
    (tmp_path / "transitions" / "001-002.png").unlink()
    write_video(tmp_path / "video.mp4", [*FRAMES, *FRAMES], fps=8)
    found = find_runs(tmp_path)
    assert [clip.name for clip in found.clips] == ["Two (seed 0) video.mp4"]
    assert found.clips[0].read().shape == (6, 16, 32, 3)
    assert "including held panels and captions" in found.remarks[0]


def test_given_images_have_unknown_characters(tmp_path):
    manifest = write_run(tmp_path)
    write_run(
        tmp_path, config={**manifest.config, "frames": ["a.png", "b.png", "c.png"]}, origin="pretrained", video=None
    )
    found = find_runs(tmp_path)
    assert {image.characters for image in found.stories["Two (seed 0)"]} == {ALL}
    assert not found.clips
    assert not found.are_miniature


def test_a_folder_of_runs_is_many_stories_but_never_one_of_them_twice(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1)
    assert list(find_runs(tmp_path).stories) == ["Two (seed 0)", "Two (seed 1)"]
    write_run(tmp_path / "c", seed=1)
    with pytest.raises(UserError, match="same story with the same seed"):
        find_runs(tmp_path)


def test_incomplete_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match="contains no run folder"):
        find_runs(tmp_path)
    write_run(tmp_path, complete=False)
    with pytest.raises(UserError, match="not finished"):
        find_runs(tmp_path)
    write_run(tmp_path)
    (tmp_path / "transitions" / "001-002.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="001-002"):
        find_runs(tmp_path).clips[0].read()
    write_run(tmp_path, config={"seed": 0})
    with pytest.raises(UserError, match="does not contain its script"):
        find_runs(tmp_path)
    write_run(tmp_path)
    (tmp_path / "panels" / "002.png").unlink()
    with pytest.raises(UserError, match=r"002\.png is missing"):
        find_runs(tmp_path)


def images_in(folder: Path, *names: str) -> None:
    for name, frame in zip(names, FRAMES, strict=False):
        write_image(folder / name, Image.fromarray(frame))


def test_images_are_a_story_with_lines_or_files_of_text(tmp_path):
    images_in(tmp_path, "b.png", "a.png")
    (tmp_path / "notes.md").write_text("not an image")
    assert [p.text for p in find_images(tmp_path, None, None).stories[tmp_path.name]] == [None, None]
    captions, boxes = tmp_path / "captions", tmp_path / "boxes.json"
    captions.write_text("first\nsecond\n")
    boxes.write_text('{"b.png": [1, 2, 3, 4]}')
    found = find_images(tmp_path, captions, boxes).stories[tmp_path.name]
    assert [(p.name, p.text, p.box) for p in found] == [("a.png", "first", None), ("b.png", "second", (1, 2, 3, 4))]
    (tmp_path / "a.txt").write_text("beside a\n")
    with pytest.raises(UserError, match=r"b\.txt is missing"):
        find_images(tmp_path, None, None)
    (tmp_path / "b.txt").write_text("beside b\n")
    assert [p.text for p in find_images(tmp_path, None, None).stories[tmp_path.name]] == ["beside a", "beside b"]


def test_folders_inside_are_stories_but_not_an_earlier_evaluation(tmp_path):
    images_in(tmp_path / "one", "1.png")
    images_in(tmp_path / "two", "1.png", "2.png")
    images_in(tmp_path / "evaluation", "metrics.png")
    (tmp_path / "evaluation" / "result.json").write_text("{}")
    found = find_images(tmp_path, None, None).stories
    assert {story: [p.name for p in images] for story, images in found.items()} == {
        "one": ["one/1.png"],
        "two": ["two/1.png", "two/2.png"],
    }


@pytest.mark.parametrize(
    ("captions", "boxes", "said"),
    [
        ("one line\n", None, "1 lines for 2 images"),
        (None, "no JSON", "cannot be read"),
        (None, '{"a.png": [1, 2, 3]}', "cannot be read"),
        (None, '{"c.png": [1, 2, 3, 4]}', "c.png"),
        (None, '{"a.png": [3, 2, 3, 4]}', "x0 < x1"),
    ],
)
def test_texts_and_boxes_that_do_not_fit_are_refused(tmp_path, captions, boxes, said):
    images_in(tmp_path, "a.png", "b.png")
    files = []
    for name, content in (("captions", captions), ("boxes", boxes)):
        if content is not None:
            (tmp_path / name).write_text(content)
        files.append(None if content is None else tmp_path / name)
    with pytest.raises(UserError, match=said):
        find_images(tmp_path, *files)


def test_no_images_and_no_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="no images"):
        find_images(tmp_path, None, None)
    with pytest.raises(UserError, match="is not a folder"):
        find_images(tmp_path / "missing", None, None)


def test_videos_have_references_of_the_same_name(tmp_path):
    for name, frames in (("made", [*FRAMES, *FRAMES]), ("true", [*FRAMES])):
        write_video(tmp_path / name / "a.mp4", frames, fps=8)
    (clip,) = find_videos(tmp_path / "made", tmp_path / "true", 3).clips
    assert clip.name == "a"
    assert clip.reference is not None
    assert clip.read().shape == clip.reference().shape == (3, 16, 32, 3)
    np.testing.assert_array_equal(clip.read(), clip.reference())
    with pytest.raises(UserError, match="has 3 frames, not frames=5"):
        find_videos(tmp_path / "made", tmp_path / "true", 5)
    write_video(tmp_path / "made" / "b.mp4", FRAMES, fps=8)
    with pytest.raises(UserError, match=r"no b\.mp4"):
        find_videos(tmp_path / "made", tmp_path / "true", None)


def test_an_unreadable_video_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"a\.mp4"):
        find_videos(tmp_path, None, None)
    with pytest.raises(UserError, match=r"no \.mp4 files"):
        find_videos(tmp_path / "..", None, None)


def test_settings_are_plain_data(tmp_path):
    write_run(tmp_path)
    assert json.loads(json.dumps(find_runs(tmp_path).settings))["Two (seed 0)"]["video"] == {"frames": 3}
